#include "frames.h"

#include <errno.h>
#include <math.h>
#include <stb_image_write.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "errors.h"

/* The part of the last name from its last dot on, without slashes at its end; "" if it has none. */
static void find_ending(char ending[8], const char *path) {
    size_t end = strlen(path);
    size_t start;
    while (end > 0 && path[end - 1] == '/') end--;
    for (start = end; start > 0 && path[start - 1] != '.' && path[start - 1] != '/';) start--;
    ending[0] = '\0';
    /* A name that begins with its only dot has no ending. */
    if (start < 2 || path[start - 1] != '.' || path[start - 2] == '/') return;
    snprintf(ending, 8, "%.*s", (int)(end - start + 1), path + start - 1);
}

static int choose_format(struct frame_writer *writer, const char *format, int32_t num_frames) {
    static const char *const names[] = {"y4m", "rgb", "png"};
    struct output *output = &writer->output;
    char ending[8];
    int index;
    find_ending(ending, output->path);
    if (format == NULL && *ending == '\0') format = output->is_stream ? "y4m" : "png";
    if (format == NULL) format = ending + 1;
    for (index = 0; index < 3 && strcmp(format, names[index]) != 0; index++) continue;
    if (index == 3) {
        return report_error(
            "%s has an unknown ending: use .y4m, .rgb, .png, or no ending for a folder of .png",
            output->path);
    }
    writer->format = (enum frame_format)index;
    /* All of one length: who reads them by name gets them in their order. */
    output->name_digits = snprintf(NULL, 0, "%04d", (int)num_frames);
    output->is_folder =
        writer->format == FORMAT_PNG && !output->is_stream && strcmp(ending, ".png") != 0;
    if (writer->format == FORMAT_PNG && strcmp(ending, ".png") == 0 && num_frames > 1) {
        return report_error(
            "%s holds one image and the clip has %d frames: use .y4m, or no ending for a folder",
            output->path, (int)num_frames);
    }
    return EXIT_OK;
}

/* The fraction that is nearest to a frame rate among those with small denominators, 24000/1001, and
 * among those of 1. What reads Y4M has 32 bits for each part. */
static void find_fraction(double value, long *numerator, long *denominator) {
    const double tolerance = 1e-9;
    long candidate;
    for (candidate = 1; candidate < 1001; candidate++) {
        if (fabs(value * (double)candidate - round(value * (double)candidate)) <
            tolerance * value * (double)candidate) {
            break;
        }
    }
    /* Below, n/1001 is further from it than 1/n. */
    if (candidate == 1001 && value < 1.0 / 32) {
        *numerator = 1;
        *denominator = lround(fmin(1 / value, INT32_MAX));
    } else {
        *denominator = candidate;
        *numerator = lround(fmin(value * (double)candidate, INT32_MAX));
    }
}

static bool write_y4m_header(struct frame_writer *writer, const mutoscope_settings *settings) {
    char header[128];
    long numerator;
    long denominator;
    int length;
    find_fraction(settings->frame_rate, &numerator, &denominator);
    length = snprintf(header, sizeof header,
                      "YUV4MPEG2 W%d H%d F%ld:%ld Ip A1:1 C444 XCOLORRANGE=LIMITED\n",
                      (int)settings->width, (int)settings->height, numerator, denominator);
    return write_bytes(&writer->output, header, (size_t)length);
}

int open_frames(struct frame_writer *writer, const char *path, const char *format, bool force,
                const mutoscope_settings *settings) {
    int code;
    find_output(&writer->output, path, force);
    code = choose_format(writer, format, settings->num_frames);
    if (code == EXIT_OK) code = open_output(&writer->output);
    if (code != EXIT_OK || writer->format != FORMAT_Y4M) return code;
    writer->plane_bytes = (size_t)settings->height * (size_t)settings->width;
    writer->planes = malloc(3 * writer->plane_bytes);
    if (writer->planes == NULL) return report_error("out of memory");
    return write_y4m_header(writer, settings) ? EXIT_OK : report_unwritable(&writer->output);
}

/* BT.601 in limited range, 16 bits behind the point: the weights of Y add up to 219 / 255, those of
 * Cb and Cr to 0. */
static void convert_to_yuv(struct frame_writer *writer, const uint8_t *pixels) {
    uint8_t *luma = writer->planes;
    uint8_t *blue = luma + writer->plane_bytes;
    uint8_t *red = blue + writer->plane_bytes;
    size_t index;
    for (index = 0; index < writer->plane_bytes; index++, pixels += 3) {
        const int32_t half = 1 << 15;
        int32_t r = pixels[0];
        int32_t g = pixels[1];
        int32_t b = pixels[2];
        luma[index] = (uint8_t)((16829 * r + 33039 * g + 6416 * b + (16 << 16) + half) >> 16);
        blue[index] = (uint8_t)((-9714 * r - 19070 * g + 28784 * b + (128 << 16) + half) >> 16);
        red[index] = (uint8_t)((28784 * r - 24103 * g - 4681 * b + (128 << 16) + half) >> 16);
    }
}

/* What stb_image_write calls; a PNG comes in one piece. */
struct png_sink {
    const struct output *output;
    bool is_written;
};

static void write_png_bytes(void *sink, void *bytes, int count) {
    struct png_sink *png = sink;
    png->is_written = write_bytes(png->output, bytes, (size_t)count);
}

static bool write_png(struct frame_writer *writer, const mutoscope_frame *frame) {
    struct png_sink sink = {&writer->output, false};
    errno = ENOMEM; /* if it comes to no write */
    return stbi_write_png_to_func(write_png_bytes, &sink, frame->width, frame->height, 3,
                                  frame->pixels, frame->row_bytes) != 0 &&
           sink.is_written;
}

static bool write_format(struct frame_writer *writer, const mutoscope_frame *frame) {
    struct output *output = &writer->output;
    if (output->is_folder) {
        return open_frame_file(output, (int)frame->frame_index) && write_png(writer, frame) &&
               close_file(output);
    }
    if (writer->format == FORMAT_PNG) return write_png(writer, frame);
    if (writer->format == FORMAT_RGB) {
        return write_bytes(output, frame->pixels, (size_t)frame->row_bytes * (size_t)frame->height);
    }
    convert_to_yuv(writer, frame->pixels);
    return write_bytes(output, "FRAME\n", 6) &&
           write_bytes(output, writer->planes, 3 * writer->plane_bytes);
}

bool write_frame(struct frame_writer *writer, const mutoscope_frame *frame) {
    if (write_format(writer, frame)) return true;
    report_unwritable(&writer->output);
    return false;
}

int close_frames(struct frame_writer *writer, bool is_complete) {
    int code = close_output(&writer->output, is_complete);
    free(writer->planes);
    writer->planes = NULL;
    return code;
}
