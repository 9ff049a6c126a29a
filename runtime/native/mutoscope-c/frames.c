#define _POSIX_C_SOURCE 200809L

#include "frames.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stb_image_write.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "errors.h"

static bool is_stdout(const char *target) { return strcmp(target, "-") == 0; }

/* The part of the last name from its last dot on; "" if it has none. */
static const char *find_ending(const char *target) {
    const char *slash = strrchr(target, '/');
    const char *name = slash == NULL ? target : slash + 1;
    const char *dot = strrchr(name, '.');
    return dot == NULL || dot == name ? "" : dot;
}

static int choose_format(struct frame_writer *writer, const char *format, int32_t num_frames) {
    static const char *const names[] = {"y4m", "rgb", "png"};
    const char *ending = find_ending(writer->target);
    int index;
    if (format == NULL && is_stdout(writer->target)) format = "y4m";
    if (format == NULL) format = *ending == '\0' ? "png" : ending + 1;
    for (index = 0; index < 3 && strcmp(format, names[index]) != 0; index++) continue;
    if (index == 3) {
        return report_error(
            "%s has an unknown ending: use .y4m, .rgb, .png, or no ending for a folder of .png",
            writer->target);
    }
    writer->format = (enum frame_format)index;
    writer->is_folder =
        writer->format == FORMAT_PNG && !is_stdout(writer->target) && strcmp(ending, ".png") != 0;
    if (writer->format == FORMAT_PNG && strcmp(ending, ".png") == 0 && num_frames > 1) {
        return report_error(
            "%s holds one image and the clip has %d frames: use .y4m, or no ending for a folder",
            writer->target, (int)num_frames);
    }
    return EXIT_OK;
}

/* frame_0001.png, and more digits from 10000 on. */
static bool is_frame_name(const char *name) {
    size_t digits;
    if (strncmp(name, "frame_", 6) != 0) return false;
    digits = strspn(name + 6, "0123456789");
    return digits >= 4 && strcmp(name + 6 + digits, ".png") == 0;
}

/* Whether a folder has nothing but frames; with remove_them, they and it are removed. */
static bool walk_frames_folder(const char *path, bool remove_them) {
    bool is_ours = true;
    struct dirent *entry;
    DIR *folder = opendir(path);
    if (folder == NULL) return false;
    while (is_ours && (entry = readdir(folder)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        is_ours = is_frame_name(entry->d_name);
        if (is_ours && remove_them) {
            is_ours = unlinkat(dirfd(folder), entry->d_name, 0) == 0;
        }
    }
    closedir(folder);
    return is_ours && (!remove_them || rmdir(path) == 0);
}

static int check_target(const struct frame_writer *writer, bool force) {
    struct stat status;
    const char *target = writer->target;
    if (lstat(target, &status) != 0) return EXIT_OK;
    /* /dev/null, a FIFO: there is nothing to replace. */
    if (S_ISCHR(status.st_mode) || S_ISFIFO(status.st_mode)) return EXIT_OK;
    if (!force) return report_error("%s exists: use --force or another name", target);
    if (S_ISDIR(status.st_mode) != writer->is_folder) {
        return report_error("%s is a %s, which is not replaced: use another name", target,
                            S_ISDIR(status.st_mode) ? "folder" : "file");
    }
    if (writer->is_folder && !walk_frames_folder(target, false)) {
        return report_error("%s holds more than frame_0001.png and so on: use another name",
                            target);
    }
    return EXIT_OK;
}

static int report_unwritable(struct frame_writer *writer) {
    writer->failed = true;
    if (is_stdout(writer->target) && errno == EPIPE) {
        writer->reader_gone = true;
        return EXIT_ERROR;
    }
    return report_error("%s cannot be written: %s",
                        is_stdout(writer->target) ? "stdout" : writer->target, strerror(errno));
}

/* Make what is renamed at the end: unlike mkstemp, with the permissions that files have here. */
static int make_temporary(struct frame_writer *writer) {
    struct stat status;
    size_t room = strlen(writer->target) + 32;
    size_t length = strlen(writer->target);
    int file;
    if (is_stdout(writer->target)) {
        writer->file = stdout;
        return EXIT_OK;
    }
    if (!writer->is_folder && stat(writer->target, &status) == 0 &&
        (S_ISCHR(status.st_mode) || S_ISFIFO(status.st_mode))) {
        writer->file = fopen(writer->target, "wb");
        return writer->file == NULL ? report_unwritable(writer) : EXIT_OK;
    }
    while (length > 1 && writer->target[length - 1] == '/') length--;
    writer->temporary = malloc(room);
    if (writer->temporary == NULL) return report_error("out of memory");
    snprintf(writer->temporary, room, "%.*s.partial-%ld", (int)length, writer->target,
             (long)getpid());
    if (writer->is_folder) {
        if (mkdir(writer->temporary, 0777) == 0) return EXIT_OK;
    } else {
        file = open(writer->temporary, O_WRONLY | O_CREAT | O_EXCL, 0666);
        if (file >= 0) {
            writer->file = fdopen(file, "wb");
            if (writer->file != NULL) return EXIT_OK;
            close(file);
            unlink(writer->temporary);
        }
    }
    free(writer->temporary);
    writer->temporary = NULL; /* not ours to remove */
    return report_unwritable(writer);
}

/* The fraction that is nearest to a frame rate among those with small denominators: 24000/1001. */
static void find_fraction(double value, long *numerator, long *denominator) {
    const double tolerance = 1e-9;
    long candidate;
    for (candidate = 1; candidate < 1001; candidate++) {
        if (fabs(value * (double)candidate - round(value * (double)candidate)) <
            tolerance * value * (double)candidate) {
            break;
        }
    }
    *denominator = candidate;
    *numerator = lround(value * (double)candidate);
}

static bool write_y4m_header(struct frame_writer *writer, const mutoscope_settings *settings) {
    long numerator;
    long denominator;
    find_fraction(settings->frame_rate, &numerator, &denominator);
    return fprintf(writer->file, "YUV4MPEG2 W%d H%d F%ld:%ld Ip A1:1 C444 XCOLORRANGE=LIMITED\n",
                   (int)settings->width, (int)settings->height, numerator, denominator) > 0;
}

int open_frames(struct frame_writer *writer, const char *target, const char *format, bool force,
                const mutoscope_settings *settings) {
    int code;
    writer->target = target;
    code = choose_format(writer, format, settings->num_frames);
    if (code == EXIT_OK && !is_stdout(target)) code = check_target(writer, force);
    if (code == EXIT_OK) code = make_temporary(writer);
    if (code != EXIT_OK || writer->format != FORMAT_Y4M) return code;
    writer->plane_bytes = (size_t)settings->height * (size_t)settings->width;
    writer->planes = malloc(3 * writer->plane_bytes);
    if (writer->planes == NULL) return report_error("out of memory");
    return write_y4m_header(writer, settings) ? EXIT_OK : report_unwritable(writer);
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

static void write_bytes(void *file, void *bytes, int count) {
    fwrite(bytes, 1, (size_t)count, file);
}

static bool write_png(struct frame_writer *writer, const mutoscope_frame *frame) {
    return stbi_write_png_to_func(write_bytes, writer->file, frame->width, frame->height, 3,
                                  frame->pixels, frame->row_bytes) != 0 &&
           !ferror(writer->file);
}

static bool write_png_in_folder(struct frame_writer *writer, const mutoscope_frame *frame) {
    size_t room = strlen(writer->temporary) + 32;
    char *path = malloc(room);
    bool written = false;
    if (path == NULL) return false;
    snprintf(path, room, "%s/frame_%04d.png", writer->temporary, (int)frame->frame_index + 1);
    writer->file = fopen(path, "wb");
    free(path);
    if (writer->file != NULL) {
        written = write_png(writer, frame);
        written = fclose(writer->file) == 0 && written;
        writer->file = NULL;
    }
    return written;
}

static bool write_format(struct frame_writer *writer, const mutoscope_frame *frame) {
    size_t bytes = (size_t)frame->row_bytes * (size_t)frame->height;
    if (writer->is_folder) return write_png_in_folder(writer, frame);
    if (writer->format == FORMAT_PNG) return write_png(writer, frame);
    if (writer->format == FORMAT_RGB) return fwrite(frame->pixels, 1, bytes, writer->file) == bytes;
    convert_to_yuv(writer, frame->pixels);
    bytes = 3 * writer->plane_bytes;
    return fputs("FRAME\n", writer->file) >= 0 &&
           fwrite(writer->planes, 1, bytes, writer->file) == bytes;
}

bool write_frame(struct frame_writer *writer, const mutoscope_frame *frame) {
    errno = 0;
    /* What reads a pipe has each frame when it is ready. */
    if (write_format(writer, frame) && (writer->file == NULL || fflush(writer->file) == 0)) {
        writer->num_written++;
        return true;
    }
    report_unwritable(writer);
    return false;
}

static int finish(struct frame_writer *writer) {
    if (writer->file != NULL && fclose(writer->file) != 0) {
        writer->file = NULL;
        return report_unwritable(writer);
    }
    writer->file = NULL;
    if (writer->temporary == NULL) return EXIT_OK;
    /* A folder is not renamed over one that holds something. */
    if (writer->is_folder) walk_frames_folder(writer->target, true);
    if (rename(writer->temporary, writer->target) != 0) return report_unwritable(writer);
    free(writer->temporary);
    writer->temporary = NULL;
    return EXIT_OK;
}

int close_frames(struct frame_writer *writer, bool is_complete) {
    int code = is_complete ? finish(writer) : EXIT_OK;
    if (writer->file != NULL && writer->file != stdout) fclose(writer->file);
    writer->file = NULL;
    if (writer->temporary != NULL) {
        if (writer->is_folder) {
            walk_frames_folder(writer->temporary, true);
        } else {
            unlink(writer->temporary);
        }
    }
    free(writer->temporary);
    free(writer->planes);
    writer->temporary = NULL;
    writer->planes = NULL;
    return code;
}
