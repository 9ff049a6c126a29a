//! A safe face of libmutoscope: a pipeline, and frames to a closure as they are decoded.

mod sys;

use std::ffi::{c_void, CStr, CString, NulError};
use std::fmt;
use std::mem::{size_of, MaybeUninit};
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::ptr;

const CONTINUE: i32 = 0;
const CANCEL: i32 = 1;

/// A status of the library, and its line about it.
#[derive(Debug)]
pub struct Error {
    pub status: i32,
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<NulError> for Error {
    fn from(error: NulError) -> Self {
        // MUTOSCOPE_ERROR_ARGUMENT
        Error {
            status: -1,
            message: error.to_string(),
        }
    }
}

fn check(status: i32) -> Result<(), Error> {
    if status == 0 {
        return Ok(());
    }
    // It lives until the next failure in this thread: copied at once.
    let message = unsafe { CStr::from_ptr(sys::mutoscope_last_error()) };
    Err(Error {
        status,
        message: message.to_string_lossy().into_owned(),
    })
}

/// What to generate; what is 0 is taken from the bundle.
#[derive(Default)]
pub struct Request {
    pub prompt: String,
    pub seed: u64,
    pub num_frames: i32,
    pub num_inference_steps: i32,
}

/// One frame: RGB, `height * width * 3` bytes.
pub struct Frame<'a> {
    pub index: i32,
    pub height: i32,
    pub width: i32,
    pub pixels: &'a [u8],
}

/// A bundle that is open; closed when it is dropped.
pub struct Pipeline {
    handle: *mut sys::Pipeline,
}

// One thread at a time may use it, and `generate` takes it by `&mut`.
unsafe impl Send for Pipeline {}

impl Drop for Pipeline {
    fn drop(&mut self) {
        unsafe { sys::mutoscope_pipeline_close(self.handle) }
    }
}

// What the callback is given: the closure, and a panic of it, which must not cross C.
struct Call<'a> {
    on_frame: &'a mut dyn FnMut(&Frame) -> bool,
    panic: Option<Box<dyn std::any::Any + Send>>,
}

extern "C" fn pass_frame(frame: *const sys::Frame, user_data: *mut c_void) -> i32 {
    let (frame, call) = unsafe { (&*frame, &mut *user_data.cast::<Call>()) };
    let size = frame.row_bytes as usize * frame.height as usize;
    let pixels = unsafe { std::slice::from_raw_parts(frame.pixels, size) };
    let shown = Frame {
        index: frame.frame_index,
        height: frame.height,
        width: frame.width,
        pixels,
    };
    match catch_unwind(AssertUnwindSafe(|| (call.on_frame)(&shown))) {
        Ok(true) => CONTINUE,
        Ok(false) => CANCEL,
        Err(panic) => {
            call.panic = Some(panic);
            CANCEL
        }
    }
}

impl Pipeline {
    /// Open the bundle in a folder.
    pub fn open(bundle: &str) -> Result<Self, Error> {
        let path = CString::new(bundle)?;
        let mut handle = ptr::null_mut();
        check(unsafe { sys::mutoscope_pipeline_open(&mut handle, path.as_ptr(), ptr::null()) })?;
        Ok(Pipeline { handle })
    }

    /// Generate a video; `on_frame` is called with each frame and says whether to go on.
    pub fn generate(
        &mut self,
        request: &Request,
        mut on_frame: impl FnMut(&Frame) -> bool,
    ) -> Result<(), Error> {
        let prompt = CString::new(request.prompt.as_str())?;
        let mut params = MaybeUninit::<sys::GenerateParams>::uninit();
        let size = size_of::<sys::GenerateParams>();
        check(unsafe { sys::mutoscope_generate_params_init(params.as_mut_ptr(), size) })?;
        let mut params = unsafe { params.assume_init() };
        params.prompt = prompt.as_ptr();
        params.seed = request.seed;
        params.num_frames = request.num_frames;
        params.num_inference_steps = request.num_inference_steps;
        params.frame_callback = Some(pass_frame);
        let mut call = Call {
            on_frame: &mut on_frame,
            panic: None,
        };
        params.frame_user_data = (&mut call as *mut Call).cast();
        let no_result = ptr::null_mut();
        let status =
            unsafe { sys::mutoscope_generate(no_result, ptr::null_mut(), 0, self.handle, &params) };
        if let Some(panic) = call.panic {
            resume_unwind(panic);
        }
        check(status)
    }
}
