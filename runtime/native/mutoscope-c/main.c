/* mutoscope-c: make a video with a bundle, through the public header alone. */
#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "errors.h"
#include "frames.h"
#include "image.h"
#include "interrupts.h"
#include "mutoscope.h"
#include "options.h"
#include "report.h"

/* What the callbacks are given. */
struct run {
    struct options options;
    struct frame_writer writer;
    bool shows_progress;
    bool is_terminal;
};

static int report_library_error(void) {
    /* A signal ends what blocks in the library too, with an error of its own. */
    if (was_interrupted()) return EXIT_INTERRUPTED;
    return report_error("%s", mutoscope_last_error());
}

static int32_t on_progress(const mutoscope_progress *progress, void *user_data) {
    static const char *const stages[] = {"encoding", "denoising", "decoding"};
    const struct run *run = user_data;
    if (run->shows_progress && progress->stage >= 0 && progress->stage < 3) {
        fprintf(stderr, run->is_terminal ? "\r%-9s %d of %d  " : "%s %d of %d\n",
                stages[progress->stage], (int)progress->num_done, (int)progress->num_in_all);
    }
    return was_interrupted() ? MUTOSCOPE_CANCEL : MUTOSCOPE_CONTINUE;
}

static int32_t on_frame(const mutoscope_frame *frame, void *user_data) {
    struct run *run = user_data;
    return write_frame(&run->writer, frame) ? MUTOSCOPE_CONTINUE : MUTOSCOPE_CANCEL;
}

/* Wipe the line that on_progress wrote. */
static void end_progress(const struct run *run) {
    if (run->shows_progress && run->is_terminal) fprintf(stderr, "\r%-40s\r", "");
}

static int report_status(const struct run *run, int32_t status) {
    if (status == MUTOSCOPE_OK) return EXIT_OK;
    if (status != MUTOSCOPE_ERROR_CANCELLED) return report_library_error();
    if (was_interrupted()) return EXIT_INTERRUPTED;
    /* The frames could not be written: that was reported. A reader that goes has what it wants. */
    return run->writer.output.reader_gone ? EXIT_OK : EXIT_ERROR;
}

static int generate_frames(struct run *run, mutoscope_pipeline *pipeline,
                           const mutoscope_settings *settings) {
    const struct options *options = &run->options;
    mutoscope_result result;
    int32_t status;
    int code =
        open_frames(&run->writer, options->output, options->format, options->force, settings);
    mutoscope_result_init(&result, sizeof result);
    if (code == EXIT_OK) {
        status = mutoscope_generate(&result, NULL, 0, pipeline, &options->generate);
        end_progress(run);
        code = report_status(run, status);
        if (status == MUTOSCOPE_OK) {
            code = close_frames(&run->writer, true);
            if (code == EXIT_OK && options->json)
                print_result(pipeline, options, settings, &result);
            if (code == EXIT_OK && !options->quiet && !options->json) {
                fprintf(stderr, "%s: seed %llu, %.1f s\n", options->output,
                        (unsigned long long)result.seed, result.seconds_total);
            }
        }
    }
    close_frames(&run->writer, false);
    return code;
}

static int generate(struct run *run, mutoscope_pipeline *pipeline) {
    mutoscope_generate_params *params = &run->options.generate;
    mutoscope_settings settings;
    mutoscope_array image;
    int64_t shape[3];
    int code = EXIT_OK;
    memset(&image, 0, sizeof image);
    if (run->options.image != NULL) {
        code = load_image(&image, shape, run->options.image);
        if (code != EXIT_OK) return code;
        params->image = &image;
    }
    params->progress_callback = on_progress;
    params->progress_user_data = run;
    params->frame_callback = on_frame;
    params->frame_user_data = run;
    mutoscope_settings_init(&settings, sizeof settings);
    if (mutoscope_resolve(&settings, pipeline, params) != MUTOSCOPE_OK) {
        code = report_library_error();
    } else {
        code = generate_frames(run, pipeline, &settings);
    }
    free((void *)image.data);
    return code;
}

static int run_with_options(struct run *run) {
    mutoscope_pipeline *pipeline;
    int code;
    if (!start_interrupts()) return report_error("no thread can be started");
    if (mutoscope_pipeline_open(&pipeline, run->options.bundle, &run->options.pipeline) !=
        MUTOSCOPE_OK) {
        return report_library_error();
    }
    set_interrupted_pipeline(pipeline);
    code = run->options.info ? print_info(pipeline, &run->options) : generate(run, pipeline);
    set_interrupted_pipeline(NULL);
    mutoscope_pipeline_close(pipeline);
    return code;
}

int main(int argc, char **argv) {
    struct run run;
    int code;
    memset(&run, 0, sizeof run);
    code = parse_options(&run.options, argc, argv);
    if (code == -1) {
        run.is_terminal = isatty(STDERR_FILENO) != 0;
        run.shows_progress = run.options.progress || (run.is_terminal && !run.options.quiet);
        code = run_with_options(&run);
    }
    free_options(&run.options);
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == EXIT_OK) {
        code = was_interrupted() ? EXIT_INTERRUPTED : report_error("stdout cannot be written");
    }
    if (code == EXIT_INTERRUPTED) fputs("error: interrupted; nothing was left behind\n", stderr);
    return code;
}
