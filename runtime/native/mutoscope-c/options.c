#define _POSIX_C_SOURCE 200809L

#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "errors.h"

/* Options without a letter of their own. */
enum {
    OPTION_FORMAT = 256,
    OPTION_FORCE,
    OPTION_JSON,
    OPTION_INFO,
    OPTION_PROGRESS,
    OPTION_QUIET,
    OPTION_IMAGE,
    OPTION_SEED,
    OPTION_STEPS,
    OPTION_GUIDANCE_SCALE,
    OPTION_MIN_GUIDANCE_SCALE,
    OPTION_NEGATIVE_PROMPT,
    OPTION_NUM_FRAMES,
    OPTION_HEIGHT,
    OPTION_WIDTH,
    OPTION_FRAME_RATE,
    OPTION_CONDITION,
    OPTION_SCHEDULER,
    OPTION_VARIANT,
    OPTION_EXECUTION_PROVIDER,
    OPTION_PROVIDER_OPTION,
    OPTION_ALLOW_CPU_NODES,
    OPTION_GUIDANCE_PASSES,
    OPTION_CONTEXT_LENGTH,
    OPTION_CONTEXT_STRIDE,
    OPTION_NUM_THREADS,
    OPTION_MEMORY,
    OPTION_MEMORY_LIMIT,
    OPTION_VERSION
};

static const struct option kOptions[] = {
    {"output", required_argument, NULL, 'o'},
    {"format", required_argument, NULL, OPTION_FORMAT},
    {"force", no_argument, NULL, OPTION_FORCE},
    {"json", no_argument, NULL, OPTION_JSON},
    {"info", no_argument, NULL, OPTION_INFO},
    {"progress", no_argument, NULL, OPTION_PROGRESS},
    {"quiet", no_argument, NULL, OPTION_QUIET},
    {"image", required_argument, NULL, OPTION_IMAGE},
    {"seed", required_argument, NULL, OPTION_SEED},
    {"num-inference-steps", required_argument, NULL, OPTION_STEPS},
    {"guidance-scale", required_argument, NULL, OPTION_GUIDANCE_SCALE},
    {"min-guidance-scale", required_argument, NULL, OPTION_MIN_GUIDANCE_SCALE},
    {"negative-prompt", required_argument, NULL, OPTION_NEGATIVE_PROMPT},
    {"num-frames", required_argument, NULL, OPTION_NUM_FRAMES},
    {"height", required_argument, NULL, OPTION_HEIGHT},
    {"width", required_argument, NULL, OPTION_WIDTH},
    {"frame-rate", required_argument, NULL, OPTION_FRAME_RATE},
    {"condition", required_argument, NULL, OPTION_CONDITION},
    {"scheduler", required_argument, NULL, OPTION_SCHEDULER},
    {"variant", required_argument, NULL, OPTION_VARIANT},
    {"execution-provider", required_argument, NULL, OPTION_EXECUTION_PROVIDER},
    {"provider-option", required_argument, NULL, OPTION_PROVIDER_OPTION},
    {"allow-cpu-nodes", no_argument, NULL, OPTION_ALLOW_CPU_NODES},
    {"guidance-passes", required_argument, NULL, OPTION_GUIDANCE_PASSES},
    {"context-length", required_argument, NULL, OPTION_CONTEXT_LENGTH},
    {"context-stride", required_argument, NULL, OPTION_CONTEXT_STRIDE},
    {"num-threads", required_argument, NULL, OPTION_NUM_THREADS},
    {"memory", required_argument, NULL, OPTION_MEMORY},
    {"memory-limit", required_argument, NULL, OPTION_MEMORY_LIMIT},
    {"version", no_argument, NULL, OPTION_VERSION},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0}};

/* The readers below return -1 to go on, or the exit code of what they reported. */

/* Plain digits: strtoull takes blanks and signs too. */
static bool read_digits(unsigned long long *number, const char *text) {
    if (*text == '\0' || text[strspn(text, "0123456789")] != '\0') return false;
    errno = 0;
    *number = strtoull(text, NULL, 10);
    return errno == 0;
}

/* A decimal number: strtod takes blanks, hexadecimal numbers, "nan" and "inf" too. */
static bool read_number(double *number, const char *text) {
    char *end;
    if (*text == '\0' || text[strspn(text, "0123456789.eE+-")] != '\0') return false;
    *number = strtod(text, &end);
    return *end == '\0' && isfinite(*number);
}

/* A whole number of at least 1: in the library 0 stands for the bundle's own. */
static int read_count(int32_t *value, const char *name, const char *text) {
    unsigned long long number;
    if (!read_digits(&number, text) || number < 1 || number > INT32_MAX) {
        return report_usage("--%s is '%s'; it must be a whole number of at least 1", name, text);
    }
    *value = (int32_t)number;
    return -1;
}

/* A number above 0, for the same reason. */
static int read_scale(double *value, const char *name, const char *text) {
    double number;
    if (!read_number(&number, text) || number <= 0) {
        return report_usage("--%s is '%s'; it must be a number above 0", name, text);
    }
    *value = number;
    return -1;
}

static int read_seed(uint64_t *seed, const char *text) {
    unsigned long long number;
    if (!read_digits(&number, text)) {
        return report_usage("--seed is '%s'; it must be from 0 to %llu", text,
                            (unsigned long long)UINT64_MAX);
    }
    /* That number means a random seed; this one has its noise. */
    *seed = number == MUTOSCOPE_SEED_RANDOM ? UINT32_MAX : number;
    return -1;
}

/* The place of a text in a list that NULL ends. */
static int read_choice(int32_t *value, const char *name, const char *text,
                       const char *const *choices) {
    int32_t index;
    for (index = 0; choices[index] != NULL; index++) {
        if (strcmp(choices[index], text) == 0) {
            *value = index;
            return -1;
        }
    }
    return report_usage("--%s is '%s'; it must be %s or %s", name, text, choices[0], choices[1]);
}

/* "2GiB" and "2G" are 2 * 2^30, "2GB" is 2 * 10^9, "800" is 800. */
static int read_bytes(uint64_t *bytes, const char *name, const char *text) {
    static const char units[] = "kmgt";
    char *end;
    double number = strtod(text, &end);
    const char *found;
    /* Not what strtod takes beside plain numbers: "nan", "0x10", "1e3". */
    int is_plain = strspn(text, "0123456789.") == (size_t)(end - text) && end != text;
    while (*end == ' ') end++;
    found = *end == '\0' ? NULL : strchr(units, *end | 0x20);
    if (found != NULL) {
        double base = 1024;
        int power;
        end++;
        if (*end == 'i' || *end == 'I') {
            end++;
        } else if (*end == 'b' || *end == 'B') {
            base = 1000;
        }
        for (power = 0; power <= found - units; power++) number *= base;
    }
    if (*end == 'b' || *end == 'B') end++;
    if (!is_plain || *end != '\0' || number >= 1e19) {
        return report_usage("--%s is '%s'; it must be a size in bytes: 2GiB, 800MB or 1.5G", name,
                            text);
    }
    if (number < 1) return report_usage("--%s is '%s'; it must be a size above 0", name, text);
    *bytes = (uint64_t)(number + 0.5);
    return -1;
}

/* Cut "name=value" in two; NULL if there is no name or no "=". */
static char *cut_pair(char *text) {
    char *equals = strchr(text, '=');
    if (equals == NULL || equals == text) return NULL;
    *equals = '\0';
    return equals + 1;
}

static int read_condition(struct options *options, char *text) {
    char *value = cut_pair(text);
    mutoscope_number *condition = &options->conditions[options->generate.num_conditions];
    if (value == NULL) {
        return report_usage("--condition is '%s'; it must be NAME=X", text);
    }
    condition->name = text;
    if (!read_number(&condition->value, value)) {
        return report_usage("--condition %s is '%s'; it must be a number", text, value);
    }
    options->generate.num_conditions++;
    return -1;
}

static int read_provider_option(struct options *options, char *text) {
    char *value = cut_pair(text);
    uint64_t index = options->pipeline.num_provider_options;
    if (value == NULL) {
        return report_usage("--provider-option is '%s'; it must be KEY=VALUE", text);
    }
    options->provider_option_keys[index] = text;
    options->provider_option_values[index] = value;
    options->pipeline.num_provider_options++;
    return -1;
}

/* What the video is to be. */
static int read_generate_option(struct options *options, int option, const char *name, char *text) {
    static const char *const passes[] = {"separate", "batched", NULL};
    mutoscope_generate_params *params = &options->generate;
    switch (option) {
        case OPTION_SEED:
            return read_seed(&params->seed, text);
        case OPTION_STEPS:
            return read_count(&params->num_inference_steps, name, text);
        case OPTION_NUM_FRAMES:
            return read_count(&params->num_frames, name, text);
        case OPTION_HEIGHT:
            return read_count(&params->height, name, text);
        case OPTION_WIDTH:
            return read_count(&params->width, name, text);
        case OPTION_GUIDANCE_SCALE:
            return read_scale(&params->guidance_scale, name, text);
        case OPTION_MIN_GUIDANCE_SCALE:
            return read_scale(&params->min_guidance_scale, name, text);
        case OPTION_FRAME_RATE:
            return read_scale(&params->frame_rate, name, text);
        case OPTION_GUIDANCE_PASSES:
            return read_choice(&params->guidance_passes, name, text, passes);
        case OPTION_CONTEXT_LENGTH:
            return read_count(&params->context_length, name, text);
        case OPTION_CONTEXT_STRIDE:
            return read_count(&params->context_stride, name, text);
        case OPTION_CONDITION:
            return read_condition(options, text);
        case OPTION_NEGATIVE_PROMPT:
            params->negative_prompt = text;
            return -1;
        case OPTION_SCHEDULER:
            params->scheduler = text;
            return -1;
        case OPTION_IMAGE:
            options->image = text;
            return -1;
        default: /* getopt_long has said what is wrong. */
            fputs("Try 'mutoscope-c --help' for help.\n", stderr);
            return EXIT_USAGE;
    }
}

/* How it is run, and where it goes. */
static int read_option(struct options *options, int option, const char *name, char *text) {
    static const char *const memory_modes[] = {"normal", "low", NULL};
    static const char *const formats[] = {"y4m", "rgb", "png", NULL};
    int32_t unused;
    switch (option) {
        case 'o':
            options->output = text;
            return -1;
        case OPTION_FORMAT:
            options->format = text;
            return read_choice(&unused, name, text, formats) == -1 ? -1 : EXIT_USAGE;
        case OPTION_FORCE:
            options->force = true;
            return -1;
        case OPTION_JSON:
            options->json = true;
            return -1;
        case OPTION_INFO:
            options->info = true;
            return -1;
        case OPTION_PROGRESS:
            options->progress = true;
            return -1;
        case OPTION_QUIET:
            options->quiet = true;
            return -1;
        case OPTION_VARIANT:
            options->pipeline.variant = text;
            return -1;
        case OPTION_EXECUTION_PROVIDER:
            options->pipeline.execution_provider = text;
            return -1;
        case OPTION_PROVIDER_OPTION:
            return read_provider_option(options, text);
        case OPTION_ALLOW_CPU_NODES:
            options->pipeline.allow_cpu_nodes = 1;
            return -1;
        case OPTION_NUM_THREADS:
            return read_count(&options->pipeline.num_threads, name, text);
        case OPTION_MEMORY:
            return read_choice(&options->pipeline.memory, name, text, memory_modes);
        case OPTION_MEMORY_LIMIT:
            return read_bytes(&options->pipeline.memory_limit_bytes, name, text);
        case OPTION_VERSION:
            printf("mutoscope-c %s\n", mutoscope_version());
            return EXIT_OK;
        case 'h':
            print_help();
            return EXIT_OK;
        default:
            return read_generate_option(options, option, name, text);
    }
}

/* What must be there, and what cannot be there together. */
static int check_options(const struct options *options, int num_left) {
    if (num_left == 0) return report_usage("BUNDLE is missing: give the folder of a bundle");
    if (num_left > 2) return report_usage("BUNDLE and PROMPT are all that can be given: quote it");
    if (options->info) {
        if (num_left == 2) return report_usage("--info takes no PROMPT");
        return -1;
    }
    if (num_left == 1 && options->image == NULL) {
        return report_usage("PROMPT is missing: give it, or --image for a bundle that takes one");
    }
    if (options->output == NULL) return report_usage("OUT is missing: give -o OUT");
    if (*options->output == '\0') return report_usage("OUT is empty: give -o OUT");
    if (options->json &&
        (strcmp(options->output, "-") == 0 || strcmp(options->output, "/dev/stdout") == 0)) {
        return report_usage("--json and -o %s both want stdout: write to a file", options->output);
    }
    return -1;
}

int parse_options(struct options *options, int argc, char **argv) {
    int option;
    int index = 0;
    int code;
    memset(options, 0, sizeof *options);
    mutoscope_pipeline_params_init(&options->pipeline, sizeof options->pipeline);
    mutoscope_generate_params_init(&options->generate, sizeof options->generate);
    options->conditions = calloc((size_t)argc, sizeof *options->conditions);
    options->provider_option_keys = calloc((size_t)argc, sizeof *options->provider_option_keys);
    options->provider_option_values = calloc((size_t)argc, sizeof *options->provider_option_values);
    if (options->conditions == NULL || options->provider_option_keys == NULL ||
        options->provider_option_values == NULL) {
        return report_error("out of memory");
    }
    options->generate.conditions = options->conditions;
    options->pipeline.provider_option_keys = options->provider_option_keys;
    options->pipeline.provider_option_values = options->provider_option_values;

    while ((option = getopt_long(argc, argv, "o:h", kOptions, &index)) != -1) {
        code = read_option(options, option, kOptions[index].name, optarg);
        if (code != -1) return code;
    }
    code = check_options(options, argc - optind);
    if (code != -1) return code;
    options->bundle = argv[optind];
    if (argc - optind == 2) options->generate.prompt = argv[optind + 1];
    return -1;
}

void free_options(struct options *options) {
    free(options->conditions);
    free(options->provider_option_keys);
    free(options->provider_option_values);
}
