/* What is said on stderr. */
#ifndef MUTOSCOPE_C_ERRORS_H
#define MUTOSCOPE_C_ERRORS_H

/* Exit codes. */
enum { EXIT_OK = 0, EXIT_ERROR = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

/* Print one line, "error: ...", and return EXIT_ERROR. */
int report_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Print one line and where help is, and return EXIT_USAGE. */
int report_usage(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
