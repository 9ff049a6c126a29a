#include "settings.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

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

void check_guidance(const Bundle &bundle, const Wishes &wishes, Settings &settings) {
    const DefaultsRecord &defaults = bundle.manifest().defaults;
    const bool can_guide = bundle.manifest().guidance && settings.table.takes_guidance();
    const auto check = [&](const std::string &name, double value, const char *of_what) {
        check_number(name, value);
        if (value < 1) {
            throw ParameterError(name + " is " + format_number(value) +
                                 "; it must be at least 1: use 1 for no guidance" + of_what);
        }
        if (value <= 1) return value;
        if (const auto refusal = find_guidance_refusal(bundle, settings)) {
            throw ParameterError(name + " is " + format_number(value) + "; " + *refusal);
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

// How far a number of steps is from the nearest that there is a table of.
int64_t count_to_nearest(const Ordered<std::string> &tables, int64_t num_inference_steps) {
    int64_t nearest = INT64_MAX;
    for (const int count : list_steps(tables)) {
        nearest = std::min(nearest, std::abs(num_inference_steps - count));
    }
    return nearest;
}

// The first scheduler, after the default one, whose tables come nearest to these steps.
std::string choose_scheduler(const Manifest &manifest, int64_t num_inference_steps) {
    std::string chosen = manifest.defaults.scheduler;
    int64_t nearest = count_to_nearest(*find(manifest.schedules, chosen), num_inference_steps);
    for (const auto &[name, tables] : manifest.schedules) {
        const int64_t distance = count_to_nearest(tables, num_inference_steps);
        if (distance >= nearest) continue;
        nearest = distance;
        chosen = name;
    }
    return chosen;
}

// Whether a scheduler's table of the default steps has the denoiser of the default schedule.
bool runs_default_denoiser(const Bundle &bundle, const std::string &scheduler) {
    const Manifest &manifest = bundle.manifest();
    const int num_inference_steps = manifest.defaults.num_inference_steps;
    const std::string default_scheduler = choose_scheduler(manifest, num_inference_steps);
    if (scheduler == default_scheduler) return true;
    const auto find_denoiser = [&](const std::string &name) {
        const ScheduleTable table = bundle.load_schedule(name, num_inference_steps);
        return table.denoiser.empty() ? find_first_denoiser(manifest) : table.denoiser;
    };
    const std::string denoiser = find_denoiser(scheduler);
    return denoiser == find_denoiser(default_scheduler);
}

// The number of steps of a scheduler that was asked for without one.
int choose_steps(const Bundle &bundle, const std::string &scheduler) {
    const Manifest &manifest = bundle.manifest();
    const int default_steps = manifest.defaults.num_inference_steps;
    const std::vector<int> counts = list_steps(*find(manifest.schedules, scheduler));
    if (counts.empty()) return default_steps;
    const auto above = std::upper_bound(counts.begin(), counts.end(), kUsualNumInferenceSteps);
    const int most = above == counts.begin() ? counts.front() : *(above - 1);
    const bool has_default = std::binary_search(counts.begin(), counts.end(), default_steps);
    const bool takes_default =
        has_default && default_steps != most && runs_default_denoiser(bundle, scheduler);
    return takes_default ? default_steps : most;
}

// The scheduler and the number of steps: runtime/schedule_choice.py has the rules.
void choose_schedule(const Bundle &bundle, const Wishes &wishes, Settings &settings) {
    const Manifest &manifest = bundle.manifest();
    std::optional<int64_t> steps = wishes.num_inference_steps;
    if (wishes.scheduler) {
        settings.scheduler = bundle.find_scheduler(*wishes.scheduler);
        if (!steps) steps = choose_steps(bundle, settings.scheduler);
    } else {
        if (!steps) steps = manifest.defaults.num_inference_steps;
        settings.scheduler = choose_scheduler(manifest, *steps);
    }
    settings.num_inference_steps = static_cast<int>(*steps);
    const std::string path = bundle.find_schedule(settings.scheduler, settings.num_inference_steps);
    settings.table = bundle.load_schedule(settings.scheduler, settings.num_inference_steps);
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

std::optional<std::string> find_guidance_refusal(const Bundle &bundle, const Settings &settings) {
    if (!bundle.manifest().guidance) {
        return "this bundle's denoiser works without guidance: leave it out";
    }
    if (settings.table.takes_guidance()) return std::nullopt;
    const std::string refusal =
        "no step of " + settings.scheduler + " takes guidance: leave it out";
    for (const auto &[other, tables] : bundle.manifest().schedules) {
        const std::vector<int> steps = list_steps(tables);
        if (steps.empty() || !bundle.load_schedule(other, steps.front()).takes_guidance()) continue;
        return refusal + ", or use --scheduler " + other;
    }
    return refusal;
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
