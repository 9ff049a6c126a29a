#include "settings.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "text.h"

namespace mutoscope {
namespace {

double check_number(const std::string &name, double value) {
    if (!std::isfinite(value)) {
        throw ParameterError(name + " is " + format_number(value) + "; it must be finite");
    }
    return value;
}

double check_scale(const Manifest &manifest, const std::string &name, double value,
                   const std::string &of_what) {
    check_number(name, value);
    if (value < 1) {
        throw ParameterError(name + " is " + format_number(value) +
                             "; it must be at least 1: use 1 for no guidance" + of_what);
    }
    if (value > 1 && !manifest.guidance) {
        throw ParameterError(name + " is " + format_number(value) +
                             "; this bundle's denoiser works without guidance: use 1");
    }
    return value;
}

double check_guidance_scale(const Manifest &manifest, std::optional<double> value) {
    if (!value) return manifest.guidance ? manifest.defaults.guidance_scale : 1.0;
    return check_scale(manifest, "guidance_scale", *value, "");
}

std::optional<double> check_min_guidance_scale(const Manifest &manifest,
                                               std::optional<double> value) {
    if (!value) return manifest.defaults.min_guidance_scale;
    return check_scale(manifest, "min_guidance_scale", *value, " of the first frame");
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

int check_size(const LimitRecord &limit, const std::string &name, int64_t value) {
    limit.check(name, value);
    // A bundle may allow more than there can be.
    if (value < 1 || value > INT32_MAX) {
        throw ParameterError(name + " is " + std::to_string(value) + "; it must be from 1 to " +
                             std::to_string(INT32_MAX));
    }
    return static_cast<int>(value);
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
    settings.height =
        check_size(manifest.limits.height, "height", wishes.height.value_or(defaults.height));
    settings.width =
        check_size(manifest.limits.width, "width", wishes.width.value_or(defaults.width));
    settings.num_frames = check_size(manifest.limits.num_frames, "num_frames",
                                     wishes.num_frames.value_or(defaults.num_frames));
    settings.num_inference_steps =
        static_cast<int>(wishes.num_inference_steps.value_or(defaults.num_inference_steps));
    settings.scheduler = bundle.find_scheduler(wishes.scheduler.value_or(defaults.scheduler));
    bundle.find_schedule(settings.scheduler, settings.num_inference_steps);
    settings.guidance_scale = check_guidance_scale(manifest, wishes.guidance_scale);
    settings.min_guidance_scale = check_min_guidance_scale(manifest, wishes.min_guidance_scale);
    settings.conditions = check_conditions(manifest, wishes.conditions);
    settings.frame_rate = check_frame_rate(wishes.frame_rate.value_or(defaults.frame_rate));
    settings.latents_shape = {
        1,
        latents.channels,
        (settings.num_frames - 1) / latents.vae_scale_factor_temporal + 1,
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
