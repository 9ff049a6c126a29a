#include "settings.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "text.h"

namespace mutoscope {
namespace {

// The most steps that are taken where the caller names a scheduler and no number of steps.
constexpr int kUsualNumInferenceSteps = 25;

double check_number(const std::string &name, double value) {
    if (!std::isfinite(value)) {
        throw ParameterError(name + " is " + format_number(value) + "; it must be finite");
    }
    return value;
}

// Why guidance cannot work with a scheduler, and the way out. Reads tables of others.
std::string find_guidance_refusal(const Bundle &bundle, const std::string &scheduler) {
    if (!bundle.manifest().guidance) return "this bundle's denoiser works without guidance: use 1";
    const std::string refusal = scheduler + " takes no guidance in any step: leave it out";
    for (const auto &[other, tables] : bundle.manifest().schedules) {
        const std::vector<int> steps = list_steps(tables);
        if (steps.empty() || !bundle.load_schedule(other, steps.front()).takes_guidance()) continue;
        return refusal + ", or use --scheduler " + other;
    }
    return refusal;
}

void check_guidance(const Bundle &bundle, const Wishes &wishes, Settings &settings) {
    const DefaultsRecord &defaults = bundle.manifest().defaults;
    const bool can_guide = bundle.manifest().guidance && settings.table.takes_guidance();
    const auto check = [&](const std::string &name, double value, const char *of_what) {
        check_number(name, value);
        if (value < 1) {
            throw ParameterError(name + " is " + format_number(value) +
                                 "; it must be at least 1: use 1 for no guidance" + of_what);
        }
        if (value > 1 && !can_guide) {
            throw ParameterError(name + " is " + format_number(value) + "; " +
                                 find_guidance_refusal(bundle, settings.scheduler));
        }
        return value;
    };
    settings.guidance_scale = can_guide ? defaults.guidance_scale : 1.0;
    if (wishes.guidance_scale) {
        settings.guidance_scale = check("guidance_scale", *wishes.guidance_scale, "");
    }
    if (can_guide) settings.min_guidance_scale = defaults.min_guidance_scale;
    if (wishes.min_guidance_scale) {
        settings.min_guidance_scale =
            check("min_guidance_scale", *wishes.min_guidance_scale, " of the first frame");
    }
}

double check_frame_rate(double value) {
    check_number("frame_rate", value);
    if (!(value > 0 && value <= 1000)) {
        throw ParameterError("frame_rate is " + format_number(value) +
                             "; it must be above 0, up to 1000: use 8");
    }
    return value;
}

std::vector<std::pair<std::string, double>> check_conditions(
    const Manifest &manifest, const std::vector<std::pair<std::string, double>> &given) {
    std::vector<std::pair<std::string, double>> values;
    for (const auto &[name, record] : manifest.conditions) {
        values.emplace_back(name, record.default_value);
    }
    for (const auto &[name, value] : given) {
        const size_t index = find_condition(manifest, name);
        check_number("condition " + name, value);
        manifest.conditions[index].second.check("condition " + name, value);
        values[index].second = value;
    }
    return values;
}

// The size of the clip that latents of this shape decode to.
void take_size_of_latents(const Manifest &manifest, Wishes &wishes) {
    const Shape &shape = *wishes.latents_shape;
    const LatentsRecord &record = manifest.latents;
    const bool fits = shape.size() == 5 && shape[0] == 1 && shape[1] == record.channels &&
                      *std::min_element(shape.begin(), shape.end()) >= 1 &&
                      *std::max_element(shape.begin(), shape.end()) <= INT32_MAX;
    if (!fits) {
        throw ParameterError("latents has shape " + format_shape(shape) + "; it must be [1, " +
                             std::to_string(record.channels) + ", F, H, W]");
    }
    const auto take = [&](const char *name, std::optional<int64_t> &size, int64_t implied) {
        if (size && *size != implied) {
            throw ParameterError(std::string(name) + " is " + std::to_string(*size) +
                                 "; latents of shape " + format_shape(shape) + " make " +
                                 std::to_string(implied) + ": leave " + name + " out");
        }
        size = implied;
    };
    take("num_frames", wishes.num_frames, (shape[2] - 1) * record.vae_scale_factor_temporal + 1);
    take("height", wishes.height, shape[3] * record.vae_scale_factor_spatial);
    take("width", wishes.width, shape[4] * record.vae_scale_factor_spatial);
}

int check_size(const std::string &name, int64_t value) {
    // A bundle may allow more than there can be.
    if (value < 1 || value > INT32_MAX) {
        throw ParameterError(name + " is " + std::to_string(value) + "; it must be from 1 to " +
                             std::to_string(INT32_MAX));
    }
    return static_cast<int>(value);
}

// The scheduler and the number of steps: runtime/schedule_choice.py has the rules.
void choose_schedule(const Bundle &bundle, const Wishes &wishes, Settings &settings) {
    const Manifest &manifest = bundle.manifest();
    const DefaultsRecord &defaults = manifest.defaults;
    const auto has = [&](const std::string &name, int64_t steps) {
        return find(*find(manifest.schedules, name), std::to_string(steps)) != nullptr;
    };
    int64_t steps = wishes.num_inference_steps.value_or(defaults.num_inference_steps);
    std::string name = defaults.scheduler;
    if (!wishes.scheduler) {
        for (const auto &[other, tables] : manifest.schedules) {
            if (has(name, steps)) break;
            if (has(other, steps)) name = other;
        }
    } else {
        name = bundle.find_scheduler(*wishes.scheduler);
        if (!wishes.num_inference_steps && !has(name, steps)) {
            const std::vector<int> counts = list_steps(*find(manifest.schedules, name));
            const auto above =
                std::upper_bound(counts.begin(), counts.end(), kUsualNumInferenceSteps);
            if (!counts.empty()) steps = above == counts.begin() ? counts.front() : *(above - 1);
        }
    }
    settings.scheduler = name;
    settings.num_inference_steps = static_cast<int>(steps);
    const std::string path = bundle.find_schedule(name, settings.num_inference_steps);
    settings.table = bundle.load_schedule(name, settings.num_inference_steps);
    settings.plan = plan_rows(manifest, settings.table, path);
}

}  // namespace

size_t find_condition(const Manifest &manifest, const std::string &name) {
    const auto &conditions = manifest.conditions;
    for (size_t i = 0; i < conditions.size(); ++i) {
        if (conditions[i].first == name) return i;
    }
    throw ParameterError(
        "condition " + quote(name) + " is not one that this bundle takes: " +
        (conditions.empty() ? "it takes none" : "use some of " + join_names(conditions)));
}

std::vector<float> Settings::frame_guidance() const {
    const auto count = static_cast<size_t>(latents_shape[2]);
    const double first = min_guidance_scale.value_or(guidance_scale);
    std::vector<float> scales(count, static_cast<float>(first));
    if (count < 2) return scales;
    const double step = (guidance_scale - first) / static_cast<double>(count - 1);
    for (size_t i = 0; i < count; ++i) {
        scales[i] = static_cast<float>(static_cast<double>(i) * step + first);
    }
    scales.back() = static_cast<float>(guidance_scale);
    return scales;
}

Shape Settings::denoised_shape() const {
    Shape shape = latents_shape;
    if (windows.length > 0) shape[2] = windows.length;
    return shape;
}

bool Settings::uses_guidance() const {
    const std::vector<float> scales = frame_guidance();
    return *std::max_element(scales.begin(), scales.end()) > 1;
}

Settings make_settings(const Bundle &bundle, const Wishes &asked) {
    const Manifest &manifest = bundle.manifest();
    const DefaultsRecord &defaults = manifest.defaults;
    const LatentsRecord &latents = manifest.latents;
    Wishes wishes = asked;
    if (wishes.latents_shape) take_size_of_latents(manifest, wishes);
    Settings settings;
    const int64_t height = wishes.height.value_or(defaults.height);
    const int64_t width = wishes.width.value_or(defaults.width);
    const int64_t num_frames = wishes.num_frames.value_or(defaults.num_frames);
    manifest.limits.height.check("height", height);
    manifest.limits.width.check("width", width);
    settings.windows =
        choose_windows(manifest, num_frames, wishes.context_length, wishes.context_stride);
    settings.height = check_size("height", height);
    settings.width = check_size("width", width);
    settings.num_frames = check_size("num_frames", num_frames);
    choose_schedule(bundle, wishes, settings);
    check_guidance(bundle, wishes, settings);
    settings.conditions = check_conditions(manifest, wishes.conditions);
    settings.frame_rate = check_frame_rate(wishes.frame_rate.value_or(defaults.frame_rate));
    settings.latents_shape = {
        1,
        latents.channels,
        count_latent_frames(latents, settings.num_frames),
        settings.height / latents.vae_scale_factor_spatial,
        settings.width / latents.vae_scale_factor_spatial,
    };
    if (*std::min_element(settings.latents_shape.begin(), settings.latents_shape.end()) < 1) {
        throw ParameterError("a clip of " + std::to_string(settings.num_frames) + " frames of " +
                             std::to_string(settings.height) + " x " +
                             std::to_string(settings.width) + " pixels has no latents: use more");
    }
    return settings;
}

}  // namespace mutoscope
