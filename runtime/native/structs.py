"""The structs of mutoscope.h, field by field as there."""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)


class Limit(ctypes.Structure):
    """mutoscope_limit."""

    _fields_ = [
        ("minimum", c_int32),
        ("maximum", c_int32),
        ("multiple", c_int32),
        ("offset", c_int32),
    ]


class Number(ctypes.Structure):
    """mutoscope_number."""

    _fields_ = [("name", c_char_p), ("value", c_double)]


class Array(ctypes.Structure):
    """mutoscope_array."""

    _fields_ = [
        ("name", c_char_p),
        ("data", c_void_p),
        ("shape", POINTER(c_int64)),
        ("rank", c_int32),
        ("dtype", c_int32),
    ]


class PipelineParams(ctypes.Structure):
    """mutoscope_pipeline_params."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("num_threads", c_int32),
        ("memory", c_int32),
        ("allow_cpu_nodes", c_int32),
        ("execution_provider", c_char_p),
        ("variant", c_char_p),
        ("provider_option_keys", POINTER(c_char_p)),
        ("provider_option_values", POINTER(c_char_p)),
        ("num_provider_options", c_uint64),
        ("memory_limit_bytes", c_uint64),
    ]


class BundleInfo(ctypes.Structure):
    """mutoscope_bundle_info."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("format_version", c_int32),
        ("takes_prompt", c_int32),
        ("takes_image", c_int32),
        ("guidance", c_int32),
        ("num_inference_steps", c_int32),
        ("num_frames", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("latents_channels", c_int32),
        ("vae_scale_factor_spatial", c_int32),
        ("vae_scale_factor_temporal", c_int32),
        ("guidance_scale", c_double),
        ("min_guidance_scale", c_double),
        ("frame_rate", c_double),
        ("scheduler", c_char_p),
        ("negative_prompt", c_char_p),
        ("name", c_char_p),
        ("family", c_char_p),
        ("num_frames_limit", Limit),
        ("height_limit", Limit),
        ("width_limit", Limit),
        ("takes_context_windows", c_int32),
        ("guidance_passes", c_int32),
    ]


class ConditionInfo(ctypes.Structure):
    """mutoscope_condition_info."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("index", c_int32),
        ("default_value", c_double),
        ("minimum", c_double),
        ("maximum", c_double),
        ("description", c_char_p),
    ]


class Progress(ctypes.Structure):
    """mutoscope_progress."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("stage", c_int32),
        ("num_done", c_int32),
        ("num_in_all", c_int32),
        ("seconds_since_start", c_double),
        ("latents", POINTER(c_float)),
        ("latents_shape", POINTER(c_int64)),
    ]


class Frame(ctypes.Structure):
    """mutoscope_frame."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("frame_index", c_int32),
        ("num_frames", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("row_bytes", c_int32),
        ("pixels", POINTER(c_uint8)),
    ]


# int32_t (*)(const mutoscope_progress *, void *), and the same of a frame.
ProgressCallback = ctypes.CFUNCTYPE(c_int32, POINTER(Progress), c_void_p)
FrameCallback = ctypes.CFUNCTYPE(c_int32, POINTER(Frame), c_void_p)


class GenerateParams(ctypes.Structure):
    """mutoscope_generate_params."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("num_frames", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("num_inference_steps", c_int32),
        ("guidance_passes", c_int32),
        ("seed", c_uint64),
        ("guidance_scale", c_double),
        ("min_guidance_scale", c_double),
        ("frame_rate", c_double),
        ("scheduler", c_char_p),
        ("prompt", c_char_p),
        ("negative_prompt", c_char_p),
        ("prompt_inputs", POINTER(Array)),
        ("num_prompt_inputs", c_uint64),
        ("negative_prompt_inputs", POINTER(Array)),
        ("num_negative_prompt_inputs", c_uint64),
        ("image", POINTER(Array)),
        ("latents", POINTER(Array)),
        ("conditions", POINTER(Number)),
        ("num_conditions", c_uint64),
        ("progress_callback", ProgressCallback),
        ("progress_user_data", c_void_p),
        ("frame_callback", FrameCallback),
        ("frame_user_data", c_void_p),
        ("context_length", c_int32),
        ("context_stride", c_int32),
    ]


class Settings(ctypes.Structure):
    """mutoscope_settings."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("num_frames", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("num_inference_steps", c_int32),
        ("uses_guidance", c_int32),
        ("seed", c_uint64),
        ("guidance_scale", c_double),
        ("min_guidance_scale", c_double),
        ("frame_rate", c_double),
        ("scheduler", c_char_p),
        ("frames_bytes", c_uint64),
        ("guidance_passes", c_int32),
        ("context_length", c_int32),
        ("context_stride", c_int32),
        ("num_context_windows", c_int32),
        ("num_rows", c_int32),
        ("num_guided_rows", c_int32),
        ("num_denoiser_runs", c_uint64),
    ]


class Result(ctypes.Structure):
    """mutoscope_result."""

    _fields_ = [
        ("struct_size", c_uint32),
        ("num_frames", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("frame_rate", c_double),
        ("seed", c_uint64),
        ("seconds_load", c_double),
        ("seconds_text_encoder", c_double),
        ("seconds_image_encoder", c_double),
        ("seconds_vae_encoder", c_double),
        ("seconds_denoiser", c_double),
        ("seconds_sampler", c_double),
        ("seconds_vae_decoder", c_double),
        ("seconds_other", c_double),
        ("seconds_total", c_double),
        ("resident_bytes", c_uint64),
        ("peak_resident_bytes", c_uint64),
        ("seconds_output", c_double),
    ]


# By the end of their names in C: those that an init function fills, and the others.
INITIALISED: dict[str, type[ctypes.Structure]] = {
    "pipeline_params": PipelineParams,
    "generate_params": GenerateParams,
    "bundle_info": BundleInfo,
    "condition_info": ConditionInfo,
    "settings": Settings,
    "result": Result,
}
PLAIN: dict[str, type[ctypes.Structure]] = {
    "limit": Limit,
    "number": Number,
    "array": Array,
    "progress": Progress,
    "frame": Frame,
}
