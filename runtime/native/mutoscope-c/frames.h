/* Frames to files, one at a time. */
#ifndef MUTOSCOPE_C_FRAMES_H
#define MUTOSCOPE_C_FRAMES_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "mutoscope.h"

enum frame_format { FORMAT_Y4M, FORMAT_RGB, FORMAT_PNG };

/* Where frames go. All is zero before open_frames. */
struct frame_writer {
    enum frame_format format;
    bool is_folder;
    bool failed;        /* was reported */
    bool reader_gone;   /* stdout is a pipe that nobody reads */
    const char *target; /* "-": stdout */
    char *temporary;    /* a file or folder beside the target; NULL on stdout */
    FILE *file;         /* NULL in a folder, between frames */
    uint8_t *planes;    /* Y, Cb and Cr of one frame */
    size_t plane_bytes;
    int32_t num_written;
};

/* Check the target and make what is written to beside it.
 *
 * format: "y4m", "rgb", "png"; NULL: by the target's ending. force: what is there may be replaced.
 * Returns EXIT_OK or the code of what was reported. close_frames in every case. */
int open_frames(struct frame_writer *writer, const char *target, const char *format, bool force,
                const mutoscope_settings *settings);

/* Write the next frame; false if that failed, which was reported unless the reader is gone. */
bool write_frame(struct frame_writer *writer, const mutoscope_frame *frame);

/* With all frames there: give them their name, and return EXIT_OK or the code of what was reported.
 * Otherwise remove them. */
int close_frames(struct frame_writer *writer, bool is_complete);

#endif
