#include "report.h"

#include <stdio.h>

#include "errors.h"

static void print_json_text(const char *text) {
    putchar('"');
    for (; *text != '\0'; text++) {
        unsigned char byte = (unsigned char)*text;
        if (byte == '"' || byte == '\\') {
            printf("\\%c", byte);
        } else if (byte < 0x20) {
            printf("\\u%04x", byte);
        } else {
            putchar(byte);
        }
    }
    putchar('"');
}

static void print_json_number(const char *name, double value) {
    printf(", \"%s\": %.17g", name, value);
}

static void print_limit(const char *name, const mutoscope_limit *limit, const char *separator) {
    printf("\"%s\": {\"minimum\": %d, \"maximum\": ", name, (int)limit->minimum);
    if (limit->maximum > 0) {
        printf("%d", (int)limit->maximum);
    } else {
        printf("null");
    }
    printf(", \"multiple\": %d, \"offset\": %d}%s", (int)limit->multiple, (int)limit->offset,
           separator);
}

/* Print a list of names with something after each; false if the library gave no list. */
typedef bool (*print_item)(const mutoscope_pipeline *pipeline, const char *name, bool as_json);

static bool print_list(const mutoscope_pipeline *pipeline, int32_t list, print_item print,
                       bool as_json) {
    const char *const *names;
    size_t count;
    size_t index;
    if (mutoscope_pipeline_list(&names, &count, pipeline, list) != MUTOSCOPE_OK) return false;
    for (index = 0; index < count; index++) {
        if (as_json) {
            if (index > 0) printf(", ");
            print_json_text(names[index]);
        } else {
            printf("  %s", names[index]);
        }
        if (print != NULL && !print(pipeline, names[index], as_json)) return false;
        if (!as_json) putchar('\n');
    }
    return true;
}

static bool print_variant(const mutoscope_pipeline *pipeline, const char *name, bool as_json) {
    const char *variant;
    if (mutoscope_pipeline_variant(&variant, pipeline, name) != MUTOSCOPE_OK) return false;
    printf(": ");
    if (as_json) {
        print_json_text(variant);
    } else {
        printf("%s", variant);
    }
    return true;
}

static bool print_steps(const mutoscope_pipeline *pipeline, const char *name, bool as_json) {
    const int32_t *steps;
    size_t count;
    size_t index;
    if (mutoscope_pipeline_steps(&steps, &count, pipeline, name) != MUTOSCOPE_OK) return false;
    printf(as_json ? ": [" : ": ");
    for (index = 0; index < count; index++) {
        size_t end = index;
        if (!as_json) { /* as ranges */
            while (end + 1 < count && steps[end + 1] == steps[end] + 1) end++;
        }
        printf("%s%d", index > 0 ? ", " : "", (int)steps[index]);
        if (end > index) printf("-%d", (int)steps[end]);
        index = end;
    }
    if (as_json) putchar(']');
    return true;
}

static bool print_condition(const mutoscope_pipeline *pipeline, const char *name, bool as_json) {
    mutoscope_condition_info info;
    mutoscope_condition_info_init(&info, sizeof info);
    if (mutoscope_pipeline_condition(&info, pipeline, name) != MUTOSCOPE_OK) return false;
    if (as_json) {
        printf(": {\"default\": %.17g", info.default_value);
        print_json_number("minimum", info.minimum);
        print_json_number("maximum", info.maximum);
        printf(", \"description\": ");
        print_json_text(info.description);
        putchar('}');
    } else {
        printf(": %g, from %g to %g; %s", info.default_value, info.minimum, info.maximum,
               info.description);
    }
    return true;
}

static bool print_info_json(const mutoscope_pipeline *pipeline, const mutoscope_bundle_info *info) {
    printf("{\"name\": ");
    print_json_text(info->name);
    printf(", \"family\": ");
    print_json_text(info->family);
    printf(", \"format_version\": %d, \"takes_prompt\": %s, \"takes_image\": %s, \"guidance\": %s",
           (int)info->format_version, info->takes_prompt ? "true" : "false",
           info->takes_image ? "true" : "false", info->guidance ? "true" : "false");
    printf(", \"defaults\": {\"num_inference_steps\": %d", (int)info->num_inference_steps);
    print_json_number("guidance_scale", info->guidance_scale);
    print_json_number("min_guidance_scale", info->min_guidance_scale);
    printf(", \"num_frames\": %d, \"height\": %d, \"width\": %d", (int)info->num_frames,
           (int)info->height, (int)info->width);
    print_json_number("frame_rate", info->frame_rate);
    printf(", \"scheduler\": ");
    print_json_text(info->scheduler);
    printf(", \"negative_prompt\": ");
    print_json_text(info->negative_prompt);
    printf(", \"guidance_passes\": ");
    print_json_text(info->guidance_passes == MUTOSCOPE_GUIDANCE_BATCHED ? "batched" : "separate");
    printf("}, \"takes_context_windows\": %s, \"limits\": {",
           info->takes_context_windows ? "true" : "false");
    print_limit("num_frames", &info->num_frames_limit, ", ");
    print_limit("height", &info->height_limit, ", ");
    print_limit("width", &info->width_limit, "}, \"components\": {");
    if (!print_list(pipeline, MUTOSCOPE_LIST_COMPONENTS, print_variant, true)) return false;
    printf("}, \"variants\": [");
    if (!print_list(pipeline, MUTOSCOPE_LIST_VARIANTS, NULL, true)) return false;
    printf("], \"conditions\": {");
    if (!print_list(pipeline, MUTOSCOPE_LIST_CONDITIONS, print_condition, true)) return false;
    printf("}, \"schedulers\": {");
    if (!print_list(pipeline, MUTOSCOPE_LIST_SCHEDULERS, print_steps, true)) return false;
    printf("}}\n");
    return true;
}

static void print_limit_text(const char *name, const mutoscope_limit *limit, const char *beyond) {
    printf("  %-10s %d", name, (int)limit->minimum);
    if (limit->maximum > 0) {
        printf(" to %d%s", (int)limit->maximum, beyond);
    } else {
        printf(" and more");
    }
    if (limit->multiple > 1 && limit->offset == 0)
        printf(", multiples of %d", (int)limit->multiple);
    if (limit->multiple > 1 && limit->offset != 0) {
        printf(", %d k + %d", (int)limit->multiple, (int)limit->offset);
    }
    putchar('\n');
}

static bool print_conditions_text(const mutoscope_pipeline *pipeline) {
    const char *const *names;
    size_t count;
    if (mutoscope_pipeline_list(&names, &count, pipeline, MUTOSCOPE_LIST_CONDITIONS) !=
        MUTOSCOPE_OK) {
        return false;
    }
    if (count == 0) return true;
    printf("\nconditions (default, range)\n");
    return print_list(pipeline, MUTOSCOPE_LIST_CONDITIONS, print_condition, false);
}

static bool print_info_text(const mutoscope_pipeline *pipeline, const mutoscope_bundle_info *info) {
    printf("%s: %s; takes %s%s%s\n\ncomponents\n", info->name, info->family,
           info->takes_prompt ? "a prompt" : "",
           info->takes_prompt && info->takes_image ? " and " : "",
           info->takes_image ? "an image" : "");
    if (!print_list(pipeline, MUTOSCOPE_LIST_COMPONENTS, print_variant, false)) return false;
    printf("\nvariants\n");
    if (!print_list(pipeline, MUTOSCOPE_LIST_VARIANTS, NULL, false)) return false;
    printf("\nlimits\n");
    print_limit_text("height", &info->height_limit, "");
    print_limit_text("width", &info->width_limit, "");
    print_limit_text("num_frames", &info->num_frames_limit,
                     info->takes_context_windows ? " at once, longer in windows" : "");
    printf("\ndefaults\n  scheduler      %s, %d steps\n", info->scheduler,
           (int)info->num_inference_steps);
    if (info->guidance) printf("  guidance scale %g\n", info->guidance_scale);
    printf("  clip           %d frames of %d x %d pixels at %g frames per second\n",
           (int)info->num_frames, (int)info->width, (int)info->height, info->frame_rate);
    if (!print_conditions_text(pipeline)) return false;
    printf("\nschedulers (steps)\n");
    return print_list(pipeline, MUTOSCOPE_LIST_SCHEDULERS, print_steps, false);
}

int print_info(const mutoscope_pipeline *pipeline, const struct options *options) {
    mutoscope_bundle_info info;
    bool printed;
    mutoscope_bundle_info_init(&info, sizeof info);
    if (mutoscope_pipeline_info(&info, pipeline) != MUTOSCOPE_OK) {
        return report_error("%s", mutoscope_last_error());
    }
    printed = options->json ? print_info_json(pipeline, &info) : print_info_text(pipeline, &info);
    return printed ? EXIT_OK : report_error("%s", mutoscope_last_error());
}

void print_result(const mutoscope_pipeline *pipeline, const struct options *options,
                  const mutoscope_settings *settings, const mutoscope_result *result) {
    printf("{\"bundle\": ");
    print_json_text(options->bundle);
    printf(", \"path\": ");
    print_json_text(options->output);
    printf(", \"variants\": {");
    print_list(pipeline, MUTOSCOPE_LIST_COMPONENTS, print_variant, true);
    printf("}, \"prompt\": ");
    print_json_text(options->generate.prompt != NULL ? options->generate.prompt : "");
    printf(", \"seed\": %llu, \"scheduler\": ", (unsigned long long)result->seed);
    print_json_text(settings->scheduler);
    printf(", \"num_inference_steps\": %d", (int)settings->num_inference_steps);
    print_json_number("guidance_scale", settings->guidance_scale);
    print_json_number("min_guidance_scale", settings->min_guidance_scale);
    printf(", \"num_frames\": %d, \"height\": %d, \"width\": %d", (int)result->num_frames,
           (int)result->height, (int)result->width);
    print_json_number("frame_rate", result->frame_rate);
    print_json_number("seconds_load", result->seconds_load);
    print_json_number("seconds_text_encoder", result->seconds_text_encoder);
    print_json_number("seconds_image_encoder", result->seconds_image_encoder);
    print_json_number("seconds_vae_encoder", result->seconds_vae_encoder);
    print_json_number("seconds_denoiser", result->seconds_denoiser);
    print_json_number("seconds_sampler", result->seconds_sampler);
    print_json_number("seconds_vae_decoder", result->seconds_vae_decoder);
    print_json_number("seconds_other", result->seconds_other);
    print_json_number("seconds_output", result->seconds_output);
    print_json_number("seconds_total", result->seconds_total);
    printf(", \"resident_bytes\": %llu, \"peak_resident_bytes\": %llu}\n",
           (unsigned long long)result->resident_bytes,
           (unsigned long long)result->peak_resident_bytes);
}
