//! The part of mutoscope.h that this example uses, as it stands there.

use std::ffi::{c_char, c_void};

#[repr(C)]
pub struct Pipeline {
    _private: [u8; 0],
}

#[repr(C)]
pub struct Frame {
    pub struct_size: u32,
    pub frame_index: i32,
    pub num_frames: i32,
    pub height: i32,
    pub width: i32,
    pub row_bytes: i32,
    pub pixels: *const u8,
}

pub type FrameCallback = extern "C" fn(frame: *const Frame, user_data: *mut c_void) -> i32;

#[repr(C)]
pub struct GenerateParams {
    pub struct_size: u32,
    pub num_frames: i32,
    pub height: i32,
    pub width: i32,
    pub num_inference_steps: i32,
    pub guidance_passes: i32,
    pub seed: u64,
    pub guidance_scale: f64,
    pub min_guidance_scale: f64,
    pub frame_rate: f64,
    pub scheduler: *const c_char,
    pub prompt: *const c_char,
    pub negative_prompt: *const c_char,
    pub prompt_inputs: *const c_void,
    pub num_prompt_inputs: u64,
    pub negative_prompt_inputs: *const c_void,
    pub num_negative_prompt_inputs: u64,
    pub image: *const c_void,
    pub latents: *const c_void,
    pub conditions: *const c_void,
    pub num_conditions: u64,
    pub progress_callback: *const c_void,
    pub progress_user_data: *mut c_void,
    pub frame_callback: Option<FrameCallback>,
    pub frame_user_data: *mut c_void,
    pub context_length: i32,
    pub context_stride: i32,
}

#[link(name = "mutoscope")]
extern "C" {
    pub fn mutoscope_last_error() -> *const c_char;
    pub fn mutoscope_generate_params_init(params: *mut GenerateParams, struct_size: usize) -> i32;
    pub fn mutoscope_pipeline_open(
        pipeline: *mut *mut Pipeline,
        bundle_path: *const c_char,
        params: *const c_void,
    ) -> i32;
    pub fn mutoscope_pipeline_close(pipeline: *mut Pipeline);
    pub fn mutoscope_generate(
        result: *mut c_void,
        frames: *mut u8,
        frames_bytes: u64,
        pipeline: *mut Pipeline,
        params: *const GenerateParams,
    ) -> i32;
}
