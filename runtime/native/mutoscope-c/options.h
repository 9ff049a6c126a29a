/* The command line. */
#ifndef MUTOSCOPE_C_OPTIONS_H
#define MUTOSCOPE_C_OPTIONS_H

#include <stdbool.h>

#include "mutoscope.h"

/* What the command line said; its strings are those of argv. */
struct options {
    const char *bundle;
    const char *output; /* "-": stdout */
    const char *format; /* "y4m", "rgb" or "png"; NULL: by the ending of the output */
    const char *image;
    bool force;
    bool info;
    bool json;
    bool progress;
    bool quiet;
    /* Their lists belong to this struct. */
    mutoscope_pipeline_params pipeline;
    mutoscope_generate_params generate;
    mutoscope_number *conditions;
    const char **provider_option_keys;
    const char **provider_option_values;
};

/* Read argv, which is written to. Returns -1 to go on, else the exit code: a mistake was reported,
 * or --help or --version was printed. free_options in every case. */
int parse_options(struct options *options, int argc, char **argv);
void free_options(struct options *options);

/* options_help.c */
void print_help(void);

#endif
