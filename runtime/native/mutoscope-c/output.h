/* Where frames go: a file or folder that gets its name when all is there, or a stream. */
#ifndef MUTOSCOPE_C_OUTPUT_H
#define MUTOSCOPE_C_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>

struct output {
    const char *path; /* "-": stdout */
    bool is_stream;   /* stdout, another descriptor, a pipe, a device: written straight into */
    bool is_folder;   /* of one file for each frame */
    bool force;       /* what is there may be replaced */
    bool reader_gone; /* it is a pipe that nobody reads */
    int name_digits;  /* of the number in the names of a folder's files */
    int file;         /* -1: none is open, as in a folder between frames */
    char *temporary;  /* a file or folder beside the path; NULL for a stream */
};

/* Fill all but is_folder and name_digits, which the caller knows. */
void find_output(struct output *output, const char *path, bool force);

/* Check the path and make what is written to. Blocks until a named pipe is read.
 *
 * Returns EXIT_OK or the code of what was reported. close_output in every case. */
int open_output(struct output *output);

/* The next file of a folder; false with errno. */
bool open_frame_file(struct output *output, int frame_index);
bool close_file(struct output *output);

/* Write all bytes to the open file; false with errno, EINTR if a signal came. */
bool write_bytes(const struct output *output, const void *bytes, size_t count);

/* Say what errno is, unless the reader is gone or a signal came; returns the exit code. */
int report_unwritable(struct output *output);

/* With all frames there: give them their name, and return EXIT_OK or the code of what was reported.
 * Otherwise remove them. */
int close_output(struct output *output, bool is_complete);

#endif
