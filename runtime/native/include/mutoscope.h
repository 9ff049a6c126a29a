/*
 * libmutoscope: make videos with a bundle, without Python.
 *
 * Call order
 *     mutoscope_pipeline_params_init   fill the options with their defaults, then change some
 *     mutoscope_pipeline_open          read and check a bundle; nothing large is loaded yet
 *     mutoscope_generate_params_init   fill what a generation may be told, then change some
 *     mutoscope_resolve                optional: what would be made, and how many bytes that takes
 *     mutoscope_generate               as often as wanted; components are loaded at first use
 *     mutoscope_pipeline_close
 *
 * Status
 *     Functions return 0 (MUTOSCOPE_OK) or a negative status. mutoscope_last_error() then has one
 *     line that says what is wrong, with the value, and what would work. Out parameters come first
 *     and are written only on success. The library never prints and never exits.
 *
 * Ownership
 *     The caller allocates what is written to. What is passed in need not outlive the call. Strings
 *     and lists that are handed out belong to the pipeline and live until it is closed; what a
 *     callback is shown lives until the callback returns. Text is UTF-8, and ends with a zero byte.
 *
 * Threads
 *     Pipelines are independent of each other: there is no state for all but onnxruntime's own. One
 *     pipeline is used by one thread at a time; a second call that works with it returns
 *     MUTOSCOPE_ERROR_BUSY. mutoscope_cancel may be called from any thread while the pipeline is
 *     open. Callbacks run in the thread that called mutoscope_generate, and must not call it again.
 *
 * ABI
 *     Structs begin with struct_size, which their init function sets. Fields are only appended. A
 *     smaller struct is that of an older caller: what it lacks has its default. A larger one is
 * that of a newer caller: it is accepted if what is unknown here is zero. No struct has padding
 *     on 64-bit systems, which the library is for.
 *     mutoscope_limit, mutoscope_number and mutoscope_array never change.
 */
#ifndef MUTOSCOPE_H
#define MUTOSCOPE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define MUTOSCOPE_API
#else
#define MUTOSCOPE_API __attribute__((visibility("default")))
#endif

/* The version of this header; mutoscope_version() has that of the library. */
#define MUTOSCOPE_VERSION "0.1.0"
/* Raised when a program has to be compiled again; also the number in the library's SONAME. */
#define MUTOSCOPE_ABI_VERSION 1

/* What functions return. */
enum {
    MUTOSCOPE_OK = 0,
    /* The call itself is wrong: a null pointer, a struct of unknown size, a buffer too small. */
    MUTOSCOPE_ERROR_ARGUMENT = -1,
    /* A value is outside what the bundle allows. */
    MUTOSCOPE_ERROR_PARAMETER = -2,
    /* A bundle, or a file of it, is absent, damaged, or of a later format. */
    MUTOSCOPE_ERROR_BUNDLE = -3,
    /* A schedule table is malformed. */
    MUTOSCOPE_ERROR_SCHEDULE = -4,
    /* A graph cannot be loaded or run. */
    MUTOSCOPE_ERROR_ENGINE = -5,
    /* The execution provider is unknown, or not in this onnxruntime, or does not start. */
    MUTOSCOPE_ERROR_EXECUTION_PROVIDER = -6,
    /* A callback returned MUTOSCOPE_CANCEL, or mutoscope_cancel was called. */
    MUTOSCOPE_ERROR_CANCELLED = -7,
    MUTOSCOPE_ERROR_OUT_OF_MEMORY = -8,
    /* The pipeline is generating already. */
    MUTOSCOPE_ERROR_BUSY = -9,
    /* A fault of this library. */
    MUTOSCOPE_ERROR_INTERNAL = -10
};

/* What callbacks return. */
enum { MUTOSCOPE_CONTINUE = 0, MUTOSCOPE_CANCEL = 1 };

/* mutoscope_pipeline_params.memory */
enum {
    /* What was loaded stays loaded. */
    MUTOSCOPE_MEMORY_NORMAL = 0,
    /* One component at a time, but for denoisers that run in turn; weights stay in their file,
     * where the system can drop them. */
    MUTOSCOPE_MEMORY_LOW = 1
};

/* mutoscope_generate_params.guidance_passes, and which of the first two it is in
 * mutoscope_settings */
enum {
    /* The prompt and the negative prompt one after the other. */
    MUTOSCOPE_GUIDANCE_SEPARATE = 0,
    /* Both at once: twice the memory, the same within rounding, faster only on some devices. */
    MUTOSCOPE_GUIDANCE_BATCHED = 1,
    /* The bundle's own, whichever was measured to be faster. */
    MUTOSCOPE_GUIDANCE_DEFAULT = 2
};

/* mutoscope_progress.stage */
enum {
    /* The components that encode prompts and images. */
    MUTOSCOPE_STAGE_ENCODING = 0,
    /* The rows of the schedule table. */
    MUTOSCOPE_STAGE_DENOISING = 1,
    /* The runs of the decoder. */
    MUTOSCOPE_STAGE_DECODING = 2
};

/* mutoscope_array.dtype */
enum { MUTOSCOPE_FLOAT32 = 0, MUTOSCOPE_INT64 = 1, MUTOSCOPE_UINT8 = 2 };

/* mutoscope_pipeline_list */
enum {
    /* What mutoscope_generate_params.scheduler may be. */
    MUTOSCOPE_LIST_SCHEDULERS = 0,
    /* What mutoscope_pipeline_params.variant may be. */
    MUTOSCOPE_LIST_VARIANTS = 1,
    /* In the order in which they run. */
    MUTOSCOPE_LIST_COMPONENTS = 2,
    /* The numbers that a generation may be told. */
    MUTOSCOPE_LIST_CONDITIONS = 3,
    /* The inputs that are token ids; none if the bundle takes no prompt. */
    MUTOSCOPE_LIST_TOKENIZERS = 4,
    /* The inputs that the denoiser takes in place of a prompt. */
    MUTOSCOPE_LIST_PROMPT_EMBEDS = 5
};

/* A seed that is drawn; the result says which it was. As a seed, 2^32 - 1 gives the same noise. */
#define MUTOSCOPE_SEED_RANDOM UINT64_MAX

/* A bundle that is open. */
typedef struct mutoscope_pipeline mutoscope_pipeline;

/* What one size may be: multiple * k + offset, from minimum to maximum (0: no maximum). */
typedef struct mutoscope_limit {
    int32_t minimum;
    int32_t maximum;
    int32_t multiple;
    int32_t offset;
} mutoscope_limit;

/* A number by its name. */
typedef struct mutoscope_number {
    const char *name;
    double value;
} mutoscope_number;

/* An array in C order, without gaps. */
typedef struct mutoscope_array {
    /* What it is for: "input_ids", "prompt_embeds"; not looked at where there is one purpose. */
    const char *name;
    const void *data;
    /* The length of each axis. */
    const int64_t *shape;
    int32_t rank;
    /* MUTOSCOPE_FLOAT32 and so on. */
    int32_t dtype;
} mutoscope_array;

/* How a bundle is run. */
typedef struct mutoscope_pipeline_params {
    uint32_t struct_size;
    /* Threads for one operator on the CPU, at most 1024; 0: one for each core. */
    int32_t num_threads;
    /* MUTOSCOPE_MEMORY_NORMAL or MUTOSCOPE_MEMORY_LOW. */
    int32_t memory;
    /* Whether the CPU may run what another execution provider does not take; 0: an error. */
    int32_t allow_cpu_nodes;
    /* "cpu", "cuda", "tensorrt", or onnxruntime's own name of another; NULL: "cpu". */
    const char *execution_provider;
    /* "float32", "float16" or "int8", as the bundle has them; components without it run their
     * default one. NULL: the default of each. */
    const char *variant;
    /* onnxruntime's own options of the execution provider, num_provider_options of each. */
    const char *const *provider_option_keys;
    const char *const *provider_option_values;
    uint64_t num_provider_options;
    /* What the process may use while it decodes, in bytes; 0: no limit. */
    uint64_t memory_limit_bytes;
} mutoscope_pipeline_params;

/* What a bundle says of itself. */
typedef struct mutoscope_bundle_info {
    uint32_t struct_size;
    int32_t format_version;
    /* Whether it makes videos of a text, and of an image: 0 or 1. */
    int32_t takes_prompt;
    int32_t takes_image;
    /* Whether guidance_scale may be above 1. */
    int32_t guidance;
    /* The defaults; those of guidance are for schedules in which it works. min_guidance_scale is 0
     * where all frames have the same. */
    int32_t num_inference_steps;
    int32_t num_frames;
    int32_t height;
    int32_t width;
    /* Latents are [1, C, (num_frames - 1) / temporal + 1, height / spatial, width / spatial]. */
    int32_t latents_channels;
    int32_t vae_scale_factor_spatial;
    int32_t vae_scale_factor_temporal;
    double guidance_scale;
    double min_guidance_scale;
    double frame_rate;
    const char *scheduler;
    const char *negative_prompt;
    /* For people. */
    const char *name;
    const char *family;
    mutoscope_limit num_frames_limit;
    mutoscope_limit height_limit;
    mutoscope_limit width_limit;
    /* Whether clips may be longer than num_frames_limit says, in context windows: 0 or 1. */
    int32_t takes_context_windows;
    /* A default: MUTOSCOPE_GUIDANCE_SEPARATE or MUTOSCOPE_GUIDANCE_BATCHED. */
    int32_t guidance_passes;
} mutoscope_bundle_info;

/* A number that the denoiser takes and the caller may set. */
typedef struct mutoscope_condition_info {
    uint32_t struct_size;
    int32_t index;
    double default_value;
    double minimum;
    double maximum;
    const char *description;
} mutoscope_condition_info;

/* Where a generation is. */
typedef struct mutoscope_progress {
    uint32_t struct_size;
    /* MUTOSCOPE_STAGE_ENCODING and so on. */
    int32_t stage;
    /* How many parts of the stage are done, of how many. */
    int32_t num_done;
    int32_t num_in_all;
    double seconds_since_start;
    /* While denoising: the latents now, float32 [1, C, F, h, w], not to be written; else NULL. */
    const float *latents;
    const int64_t *latents_shape;
} mutoscope_progress;

/* Called after each part of the work. Returns MUTOSCOPE_CONTINUE or MUTOSCOPE_CANCEL. */
typedef int32_t (*mutoscope_progress_callback)(const mutoscope_progress *progress, void *user_data);

/* One finished frame. */
typedef struct mutoscope_frame {
    uint32_t struct_size;
    /* From 0. */
    int32_t frame_index;
    int32_t num_frames;
    int32_t height;
    int32_t width;
    /* The bytes from one row to the next: 3 * width. */
    int32_t row_bytes;
    /* RGB, uint8 [height, width, 3]. */
    const uint8_t *pixels;
} mutoscope_frame;

/* Called with each frame, in order, as soon as it is decoded. Returns as a progress callback. */
typedef int32_t (*mutoscope_frame_callback)(const mutoscope_frame *frame, void *user_data);

/* What to generate. What is 0 or NULL is taken from the bundle, if nothing else is said. */
typedef struct mutoscope_generate_params {
    uint32_t struct_size;
    /* 1 makes an image. */
    int32_t num_frames;
    int32_t height;
    int32_t width;
    /* A number of steps that the bundle has a schedule table for. 0: the bundle's, or, where the
     * scheduler has no table of that for the denoiser that runs by default, its most up to 25, else
     * its fewest. */
    int32_t num_inference_steps;
    /* MUTOSCOPE_GUIDANCE_DEFAULT and so on. */
    int32_t guidance_passes;
    /* MUTOSCOPE_SEED_RANDOM draws one. */
    uint64_t seed;
    /* At least 1, which is off and takes half the time. */
    double guidance_scale;
    /* Guidance of the first frame; from there it rises evenly to guidance_scale at the last. */
    double min_guidance_scale;
    /* Frames per second that the video says of itself; some denoisers are told. */
    double frame_rate;
    /* A name of the bundle's list, in any case. NULL: the bundle's, or, where that has no table of
     * num_inference_steps, the first that has. */
    const char *scheduler;
    /* The text. For a bundle that takes one, this or prompt_inputs must be there. One that the
     * bundle has baked needs no text encoder; a bundle may have no other. */
    const char *prompt;
    /* What to guide away from; only with a guidance_scale above 1. */
    const char *negative_prompt;
    /* In place of the prompt: for each tokenizer its token ids, int64 [1, S], as the tokenizer
     * gives them or padded already; or what the text encoder would make of it, float32 [1, S, D]
     * and, where there is one, "pooled_prompt_embeds", float32 [1, D]. */
    const mutoscope_array *prompt_inputs;
    uint64_t num_prompt_inputs;
    /* The same in place of negative_prompt. */
    const mutoscope_array *negative_prompt_inputs;
    uint64_t num_negative_prompt_inputs;
    /* The picture that a bundle starts from that takes one: uint8 [H, W, 3], RGB. */
    const mutoscope_array *image;
    /* Start noise in place of the seed's: float32 [1, C, F, h, w], standard normal. It sets the
     * size of the clip. */
    const mutoscope_array *latents;
    /* Numbers that the denoiser takes, by name. */
    const mutoscope_number *conditions;
    uint64_t num_conditions;
    mutoscope_progress_callback progress_callback;
    void *progress_user_data;
    mutoscope_frame_callback frame_callback;
    void *frame_user_data;
    /* Frames of the latents that the denoiser sees at once, and from one such window to the next;
     * the windows overlap, and what the denoiser makes of them is blended. 0: no windows up to the
     * bundle's greatest num_frames; of longer clips, windows of that length, at every half of it.
     */
    int32_t context_length;
    int32_t context_stride;
} mutoscope_generate_params;

/* What a generation would be, all defaults filled in. */
typedef struct mutoscope_settings {
    uint32_t struct_size;
    int32_t num_frames;
    int32_t height;
    int32_t width;
    int32_t num_inference_steps;
    /* Whether any step takes a second pass of the denoiser. */
    int32_t uses_guidance;
    uint64_t seed;
    double guidance_scale;
    double min_guidance_scale;
    double frame_rate;
    const char *scheduler;
    /* What all frames take: num_frames * height * width * 3. */
    uint64_t frames_bytes;
    /* MUTOSCOPE_GUIDANCE_SEPARATE or MUTOSCOPE_GUIDANCE_BATCHED. */
    int32_t guidance_passes;
    /* In frames of the latents; both 0 where the denoiser sees the clip whole. */
    int32_t context_length;
    int32_t context_stride;
    /* How many windows there are; 1 where the denoiser sees the clip whole. */
    int32_t num_context_windows;
    /* Rows of the schedule table, and those of them in which guidance works: each step is one row
     * or more. */
    int32_t num_rows;
    int32_t num_guided_rows;
    /* How often a denoiser runs: in each row, for each window and pass. */
    uint64_t num_denoiser_runs;
} mutoscope_settings;

/* How a generation went. */
typedef struct mutoscope_result {
    uint32_t struct_size;
    int32_t num_frames;
    int32_t height;
    int32_t width;
    double frame_rate;
    /* The one that was given, or drawn. */
    uint64_t seed;
    /* Reading and checking files, making sessions; once all is loaded, the schedule table alone. */
    double seconds_load;
    /* Prompt and negative prompt. */
    double seconds_text_encoder;
    double seconds_image_encoder;
    double seconds_vae_encoder;
    /* All steps, and both passes of each where guidance is on. */
    double seconds_denoiser;
    /* The rest of the loop: schedule rows, noise, guidance, callbacks. */
    double seconds_sampler;
    double seconds_vae_decoder;
    double seconds_other;
    /* From the call to the frames, without seconds_output. */
    double seconds_total;
    /* What the whole process has in memory now, and had at most; 0 where the system does not say.
     */
    uint64_t resident_bytes;
    uint64_t peak_resident_bytes;
    /* The frame callback, and copies to where all frames go. */
    double seconds_output;
} mutoscope_result;

/* The version of the library, "0.1.0". */
MUTOSCOPE_API const char *mutoscope_version(void);

/* MUTOSCOPE_ABI_VERSION of the library. */
MUTOSCOPE_API uint32_t mutoscope_abi_version(void);

/* The name of a status, "MUTOSCOPE_OK"; "MUTOSCOPE_UNKNOWN" of any other number. */
MUTOSCOPE_API const char *mutoscope_status_name(int32_t status);

/* One line about the last call in this thread that failed; "" before the first. It lives until the
 * next call in this thread fails. */
MUTOSCOPE_API const char *mutoscope_last_error(void);

/* Fill a struct with defaults, zeros where there is nothing else, and set its struct_size.
 *
 * struct_size: sizeof of the struct as the caller was compiled.
 * MUTOSCOPE_ERROR_ARGUMENT: params is NULL, or struct_size is one that no version can have: 0, no
 *     multiple of 8, or more than 65536. */
MUTOSCOPE_API int32_t mutoscope_pipeline_params_init(mutoscope_pipeline_params *params,
                                                     size_t struct_size);
MUTOSCOPE_API int32_t mutoscope_generate_params_init(mutoscope_generate_params *params,
                                                     size_t struct_size);
MUTOSCOPE_API int32_t mutoscope_bundle_info_init(mutoscope_bundle_info *info, size_t struct_size);
MUTOSCOPE_API int32_t mutoscope_condition_info_init(mutoscope_condition_info *info,
                                                    size_t struct_size);
MUTOSCOPE_API int32_t mutoscope_settings_init(mutoscope_settings *settings, size_t struct_size);
MUTOSCOPE_API int32_t mutoscope_result_init(mutoscope_result *result, size_t struct_size);

/* Open the bundle in a folder: its manifest is read, and the sizes of its files are checked. Their
 * digests are checked when they are loaded.
 *
 * pipeline: gets a handle, to be closed by mutoscope_pipeline_close.
 * params: may be NULL, for the defaults.
 * MUTOSCOPE_ERROR_BUNDLE: there is no bundle that this version can read.
 * MUTOSCOPE_ERROR_PARAMETER: no component has this variant, or a value is not allowed.
 * MUTOSCOPE_ERROR_EXECUTION_PROVIDER: it is not available. */
MUTOSCOPE_API int32_t mutoscope_pipeline_open(mutoscope_pipeline **pipeline,
                                              const char *bundle_path,
                                              const mutoscope_pipeline_params *params);

/* Free a pipeline, which must not be generating; NULL is allowed. */
MUTOSCOPE_API void mutoscope_pipeline_close(mutoscope_pipeline *pipeline);

/* Load all components that a generation with the bundle's defaults runs, so that the first one need
 * not. With MUTOSCOPE_MEMORY_LOW there is nothing to load ahead, and it does nothing. */
MUTOSCOPE_API int32_t mutoscope_pipeline_load(mutoscope_pipeline *pipeline);

/* Free the components that were loaded; the next generation loads them again. What text encoders
 * made of up to 64 prompts is kept. */
MUTOSCOPE_API int32_t mutoscope_pipeline_unload(mutoscope_pipeline *pipeline);

/* What the bundle says of itself. info must have been initialised. */
MUTOSCOPE_API int32_t mutoscope_pipeline_info(mutoscope_bundle_info *info,
                                              const mutoscope_pipeline *pipeline);

/* The names of a list, MUTOSCOPE_LIST_SCHEDULERS and so on. */
MUTOSCOPE_API int32_t mutoscope_pipeline_list(const char *const **names, size_t *count,
                                              const mutoscope_pipeline *pipeline, int32_t list);

/* The numbers of steps that there are schedule tables for, in rising order.
 *
 * scheduler: a name in any case; NULL: the default one. */
MUTOSCOPE_API int32_t mutoscope_pipeline_steps(const int32_t **steps, size_t *count,
                                               const mutoscope_pipeline *pipeline,
                                               const char *scheduler);

/* A number that the denoiser takes. info must have been initialised. */
MUTOSCOPE_API int32_t mutoscope_pipeline_condition(mutoscope_condition_info *info,
                                                   const mutoscope_pipeline *pipeline,
                                                   const char *name);

/* The variant that a component of the bundle runs: "float32". */
MUTOSCOPE_API int32_t mutoscope_pipeline_variant(const char **variant,
                                                 const mutoscope_pipeline *pipeline,
                                                 const char *component);

/* The token ids of a text, with those that the tokenizer adds, neither cut nor padded.
 *
 * ids: room for `capacity` ids; may be NULL with a capacity of 0, to learn their number.
 * num_ids: how many there are; if they are more than the capacity, ids is not written.
 * tokenizer: a name of MUTOSCOPE_LIST_TOKENIZERS; NULL: the first.
 * text, text_bytes: UTF-8; it may have zero bytes in it.
 * MUTOSCOPE_ERROR_PARAMETER: the text is not valid UTF-8, or there is no such tokenizer.
 * MUTOSCOPE_ERROR_BUNDLE: tokenizer.json is damaged, or of a kind that this version cannot run. */
MUTOSCOPE_API int32_t mutoscope_tokenize(int64_t *ids, size_t capacity, size_t *num_ids,
                                         mutoscope_pipeline *pipeline, const char *tokenizer,
                                         const char *text, size_t text_bytes);

/* Check what a generation is told, as mutoscope_generate does before any work, and say what it
 * would make. settings must have been initialised; a seed that is to be drawn is shown as 0. */
MUTOSCOPE_API int32_t mutoscope_resolve(mutoscope_settings *settings, mutoscope_pipeline *pipeline,
                                        const mutoscope_generate_params *params);

/* Generate a video.
 *
 * result: how it went; may be NULL, else it must have been initialised.
 * frames: gets all frames, uint8 [num_frames, height, width, 3], RGB; may be NULL where the frame
 *     callback takes them. After a failure it may hold the first of them.
 * frames_bytes: the room in frames, at least mutoscope_settings.frames_bytes.
 * params: initialised by mutoscope_generate_params_init.
 *
 * The same bundle, seed and settings give the same video as in Python, within 1 of 255.
 *
 * MUTOSCOPE_ERROR_ARGUMENT: frames_bytes is too small; or frames and the frame callback are NULL.
 * MUTOSCOPE_ERROR_PARAMETER: a value is not allowed.
 * MUTOSCOPE_ERROR_BUNDLE, MUTOSCOPE_ERROR_SCHEDULE: a file of the bundle is damaged.
 * MUTOSCOPE_ERROR_ENGINE: a graph cannot be loaded or run.
 * MUTOSCOPE_ERROR_CANCELLED, MUTOSCOPE_ERROR_BUSY, MUTOSCOPE_ERROR_OUT_OF_MEMORY. */
MUTOSCOPE_API int32_t mutoscope_generate(mutoscope_result *result, uint8_t *frames,
                                         uint64_t frames_bytes, mutoscope_pipeline *pipeline,
                                         const mutoscope_generate_params *params);

/* Stop the generation that runs in another thread: it returns MUTOSCOPE_ERROR_CANCELLED soon, in
 * the middle of a step; what is being loaded is loaded first. Where none runs, nothing happens. */
MUTOSCOPE_API int32_t mutoscope_cancel(mutoscope_pipeline *pipeline);

#ifdef __cplusplus
}
#endif

#endif
