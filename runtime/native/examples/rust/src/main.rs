//! Make a video and say how bright each frame is.

use mutoscope::{Error, Pipeline, Request};
use std::process::ExitCode;

fn run(bundle: &str, prompt: String) -> Result<(), Error> {
    let mut pipeline = Pipeline::open(bundle)?;
    let request = Request {
        prompt,
        seed: 7,
        num_frames: 4,
        num_inference_steps: 8,
    };
    pipeline.generate(&request, |frame| {
        let sum: u64 = frame.pixels.iter().map(|&value| u64::from(value)).sum();
        let mean = sum as f64 / frame.pixels.len() as f64;
        println!(
            "frame {}: {} x {}, mean {mean:.1}",
            frame.index, frame.width, frame.height
        );
        true
    })
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(bundle), Some(prompt), None) = (arguments.next(), arguments.next(), arguments.next())
    else {
        eprintln!("usage: generate BUNDLE PROMPT");
        return ExitCode::from(2);
    };
    match run(&bundle, prompt) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
