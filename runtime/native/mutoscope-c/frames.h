/* Frames to files, one at a time. */
#ifndef MUTOSCOPE_C_FRAMES_H
#define MUTOSCOPE_C_FRAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "mutoscope.h"
#include "output.h"

enum frame_format { FORMAT_Y4M, FORMAT_RGB, FORMAT_PNG };

struct frame_writer {
    struct output output;
    enum frame_format format;
    uint8_t *planes; /* Y, Cb and Cr of one frame */
    size_t plane_bytes;
};

/* Check where frames go and make what is written to.
 *
 * path: "-": stdout. format: "y4m", "rgb", "png"; NULL: by the path's ending. force: what is there
 * may be replaced. Returns EXIT_OK or the code of what was reported. close_frames in every case. */
int open_frames(struct frame_writer *writer, const char *path, const char *format, bool force,
                const mutoscope_settings *settings);

/* Write the next frame; false if that failed, which was reported unless the reader is gone or a
 * signal came. */
bool write_frame(struct frame_writer *writer, const mutoscope_frame *frame);

/* With all frames there: give them their name, and return EXIT_OK or the code of what was reported.
 * Otherwise remove them. */
int close_frames(struct frame_writer *writer, bool is_complete);

#endif
