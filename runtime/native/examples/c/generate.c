/* Make a video and write its frames, one PPM image after the other, into one file. */
#include <stdio.h>
#include <stdlib.h>

#include "mutoscope.h"

static int report_failure(void) {
    fprintf(stderr, "error: %s\n", mutoscope_last_error());
    return 1;
}

static int write_frames(const char *path, const uint8_t *frames, const mutoscope_result *result) {
    size_t frame_bytes = (size_t)result->height * (size_t)result->width * 3;
    int32_t index;
    FILE *file = fopen(path, "wb");
    if (file == NULL) {
        perror(path);
        return 1;
    }
    for (index = 0; index < result->num_frames; index++) {
        fprintf(file, "P6\n%d %d\n255\n", (int)result->width, (int)result->height);
        fwrite(frames + (size_t)index * frame_bytes, 1, frame_bytes, file);
    }
    if (fclose(file) != 0) {
        perror(path);
        return 1;
    }
    printf("%s: %d frames, seed %llu, %.1f s\n", path, (int)result->num_frames,
           (unsigned long long)result->seed, result->seconds_total);
    return 0;
}

static int generate(mutoscope_pipeline *pipeline, const char *prompt, const char *path) {
    mutoscope_generate_params params;
    mutoscope_settings settings;
    mutoscope_result result;
    uint8_t *frames;
    int code = 1;

    mutoscope_generate_params_init(&params, sizeof params);
    params.prompt = prompt;
    params.seed = 7;
    params.num_frames = 4;
    params.num_inference_steps = 8;

    mutoscope_settings_init(&settings, sizeof settings);
    if (mutoscope_resolve(&settings, pipeline, &params) != MUTOSCOPE_OK) return report_failure();
    frames = malloc(settings.frames_bytes);
    if (frames == NULL) {
        fputs("error: out of memory\n", stderr);
        return 1;
    }

    mutoscope_result_init(&result, sizeof result);
    if (mutoscope_generate(&result, frames, settings.frames_bytes, pipeline, &params) ==
        MUTOSCOPE_OK) {
        code = write_frames(path, frames, &result);
    } else {
        report_failure();
    }
    free(frames);
    return code;
}

int main(int argc, char **argv) {
    mutoscope_pipeline *pipeline;
    int code;
    if (argc != 4) {
        fputs("usage: generate BUNDLE PROMPT OUT.ppm\n", stderr);
        return 2;
    }
    if (mutoscope_pipeline_open(&pipeline, argv[1], NULL) != MUTOSCOPE_OK) return report_failure();
    code = generate(pipeline, argv[2], argv[3]);
    mutoscope_pipeline_close(pipeline);
    return code;
}
