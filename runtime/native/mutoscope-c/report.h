/* What --info and --json print on stdout. */
#ifndef MUTOSCOPE_C_REPORT_H
#define MUTOSCOPE_C_REPORT_H

#include "mutoscope.h"
#include "options.h"

/* Returns the exit code. */
int print_info(const mutoscope_pipeline *pipeline, const struct options *options);

void print_result(const mutoscope_pipeline *pipeline, const struct options *options,
                  const mutoscope_settings *settings, const mutoscope_result *result);

#endif
