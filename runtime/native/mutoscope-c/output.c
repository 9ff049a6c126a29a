#define _POSIX_C_SOURCE 200809L

#include "output.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "errors.h"
#include "interrupts.h"

/* The descriptor that a path stands for; -1 for a path of the file system. */
static int find_descriptor(const char *path) {
    static const char *const folders[] = {"/dev/fd/", "/proc/self/fd/"};
    size_t index;
    if (strcmp(path, "-") == 0 || strcmp(path, "/dev/stdout") == 0) return STDOUT_FILENO;
    if (strcmp(path, "/dev/stderr") == 0) return STDERR_FILENO;
    for (index = 0; index < 2; index++) {
        size_t length = strlen(folders[index]);
        size_t digits = strspn(path + (strlen(path) > length ? length : 0), "0123456789");
        if (strncmp(path, folders[index], length) == 0 && digits > 0 && digits < 9 &&
            path[length + digits] == '\0') {
            return atoi(path + length);
        }
    }
    return -1;
}

void find_output(struct output *output, const char *path, bool force) {
    struct stat status;
    memset(output, 0, sizeof *output);
    output->path = path;
    output->force = force;
    output->file = -1;
    output->is_stream = find_descriptor(path) >= 0;
    if (!output->is_stream && stat(path, &status) == 0) {
        output->is_stream = S_ISCHR(status.st_mode) || S_ISFIFO(status.st_mode);
    }
}

/* frame_0001.png, or with more digits. */
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

/* The length without slashes at the end. */
static size_t count_path(const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    return length;
}

static int check_name(const struct output *output) {
    size_t length = count_path(output->path);
    size_t start = length;
    while (start > 0 && output->path[start - 1] != '/') start--;
    if (start == length ||
        (length - start <= 2 && output->path[length - 1] == '.' && output->path[start] == '.')) {
        return report_error("%s has no name of its own: use another name", output->path);
    }
    if (!output->is_folder && output->path[length] != '\0') {
        return report_error("%s ends like a folder and is to be a file: leave out the last /",
                            output->path);
    }
    return EXIT_OK;
}

static int check_path(const struct output *output) {
    struct stat status;
    const char *path = output->path;
    int code = check_name(output);
    if (code != EXIT_OK || lstat(path, &status) != 0) return code;
    if (!output->force) return report_error("%s exists: use --force or another name", path);
    if (output->is_folder) {
        if (!S_ISDIR(status.st_mode)) {
            return report_error("%s is a file, which is not replaced: use another name", path);
        }
        if (walk_frames_folder(path, false)) return EXIT_OK;
        return report_error("%s holds more than frame_0001.png and so on: use another name", path);
    }
    /* Of a link what it leads to, if that is there: the link is what would be replaced. */
    if (stat(path, &status) != 0 || S_ISREG(status.st_mode)) return EXIT_OK;
    return report_error("%s is a %s, which is not replaced: use another name", path,
                        S_ISDIR(status.st_mode) ? "folder" : "device or socket");
}

static int open_stream(const struct output *output) {
    int descriptor = find_descriptor(output->path);
    int flags;
    int file;
    if (descriptor >= 0) {
        flags = fcntl(descriptor, F_GETFL);
        if (flags == -1) return -1;
        errno = EBADF;
        return (flags & O_ACCMODE) == O_RDONLY ? -1 : dup(descriptor);
    }
    do {
        file = open(output->path, O_WRONLY | O_NOCTTY);
    } while (file < 0 && errno == EINTR && !was_interrupted());
    return file;
}

/* A path beside another, for free(). */
static char *name_beside(const char *path, const char *kind) {
    size_t room = strlen(path) + 48;
    char *name = malloc(room);
    if (name != NULL) {
        snprintf(name, room, "%.*s.%s-%ld", (int)count_path(path), path, kind, (long)getpid());
    }
    return name;
}

int open_output(struct output *output) {
    int code;
    if (output->is_stream) {
        output->file = open_stream(output);
        return output->file < 0 ? report_unwritable(output) : EXIT_OK;
    }
    code = check_path(output);
    if (code != EXIT_OK) return code;
    output->temporary = name_beside(output->path, "partial");
    if (output->temporary == NULL) return report_error("out of memory");
    if (output->is_folder) {
        if (mkdir(output->temporary, 0777) == 0) return EXIT_OK;
    } else {
        /* Unlike mkstemp, with the permissions that files have here. */
        output->file = open(output->temporary, O_WRONLY | O_CREAT | O_EXCL, 0666);
        if (output->file >= 0) return EXIT_OK;
    }
    code = report_unwritable(output);
    free(output->temporary);
    output->temporary = NULL; /* not ours to remove */
    return code;
}

bool open_frame_file(struct output *output, int frame_index) {
    size_t room = strlen(output->temporary) + 32;
    char *path = malloc(room);
    if (path == NULL) return false;
    snprintf(path, room, "%s/frame_%0*d.png", output->temporary, output->name_digits,
             frame_index + 1);
    output->file = open(path, O_WRONLY | O_CREAT | O_EXCL, 0666);
    free(path);
    return output->file >= 0;
}

bool close_file(struct output *output) {
    int file = output->file;
    output->file = -1;
    /* Interrupted, it is closed all the same. */
    return file < 0 || close(file) == 0 || errno == EINTR;
}

bool write_bytes(const struct output *output, const void *bytes, size_t count) {
    const char *rest = bytes;
    while (count > 0) {
        ssize_t written = write(output->file, rest, count);
        if (was_interrupted()) {
            errno = EINTR;
            return false;
        }
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return false;
        rest += written;
        count -= (size_t)written;
    }
    return true;
}

int report_unwritable(struct output *output) {
    if (errno == EINTR && was_interrupted()) return EXIT_INTERRUPTED;
    if (output->is_stream && errno == EPIPE) {
        output->reader_gone = true;
        return EXIT_ERROR;
    }
    return report_error("%s cannot be written: %s",
                        strcmp(output->path, "-") == 0 ? "stdout" : output->path, strerror(errno));
}

/* What took hours is kept under the name it has. */
static int keep_temporary(struct output *output, int error) {
    report_error("%s cannot be written: %s; the frames are in %s", output->path, strerror(error),
                 output->temporary);
    free(output->temporary);
    output->temporary = NULL;
    return EXIT_ERROR;
}

/* A folder is not renamed over one that holds something: the old one makes way first. */
static int replace_folder(struct output *output) {
    char *old = name_beside(output->path, "old");
    int error;
    if (old == NULL) return keep_temporary(output, ENOMEM);
    if (rename(output->path, old) != 0) {
        error = errno;
    } else if (rename(output->temporary, output->path) != 0) {
        error = errno;
        rename(old, output->path);
    } else {
        error = 0;
        if (!walk_frames_folder(old, false) || !walk_frames_folder(old, true)) {
            fprintf(stderr, "%s: others have written to the old folder, which is now %s\n",
                    output->path, old);
        }
    }
    free(old);
    return error == 0 ? EXIT_OK : keep_temporary(output, error);
}

static int publish(struct output *output) {
    struct stat status;
    bool exists = lstat(output->path, &status) == 0;
    int code = EXIT_OK;
    if (exists && !output->force) return keep_temporary(output, EEXIST);
    if (exists && output->is_folder) {
        code = replace_folder(output);
    } else if (rename(output->temporary, output->path) != 0) {
        code = keep_temporary(output, errno);
    }
    free(output->temporary);
    output->temporary = NULL;
    return code;
}

int close_output(struct output *output, bool is_complete) {
    int code = EXIT_OK;
    if (!close_file(output) && is_complete) {
        code = report_unwritable(output);
    } else if (is_complete && output->temporary != NULL) {
        code = publish(output);
    }
    if (output->temporary != NULL) {
        if (output->is_folder) {
            walk_frames_folder(output->temporary, true);
        } else {
            unlink(output->temporary);
        }
    }
    free(output->temporary);
    output->temporary = NULL;
    return code;
}
