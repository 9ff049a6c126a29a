#include "errors.h"

#include <stdarg.h>
#include <stdio.h>

int report_error(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("error: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    return EXIT_ERROR;
}

int report_usage(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("error: ", stderr);
    vfprintf(stderr, format, arguments);
    fputs("\nTry 'mutoscope-c --help' for help.\n", stderr);
    va_end(arguments);
    return EXIT_USAGE;
}
