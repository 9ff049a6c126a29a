// Schedule tables: what is read of them, and how damaged ones are refused.
#include "schedule.h"

#include <string>
#include <string_view>
#include <vector>

#include "bad_texts.h"
#include "check.h"
#include "error.h"

using namespace mutoscope;

namespace {

constexpr const char *kTable = R"({
 "format_version": 1, "scheduler": "DDIMScheduler", "num_inference_steps": 2,
 "prediction_type": "epsilon", "init_noise_sigma": 14.5, "num_registers": 2, "rows": [
  {"timestep": 999.0, "input_scale": 0.5, "noise_draws": 0, "updates": [
    {"into": 1, "terms": [["model_output", 1.0]]}, {"into": 0, "terms": [[0, 0.1], [1, -0.5]]}]},
  {"timestep": 499, "input_scale": 1, "noise_draws": 2, "denoised": [1.5, -0.25], "updates": [
    {"into": 0, "terms": [[0, 0.25], ["noise", 3]]}], "denoiser": "unet_reuse",
   "guidance": false}], "denoiser": "unet", "graph_sha256": "ab12"})";

}  // namespace

TEST(a_schedule_table_is_read_whole) {
    const ScheduleTable table = parse_schedule(kTable, "table.json");
    CHECK_EQUAL(table.scheduler, "DDIMScheduler");
    CHECK_EQUAL(table.num_inference_steps, 2);
    CHECK_EQUAL(table.init_noise_sigma, 14.5);
    CHECK_EQUAL(table.rows.size(), 2);
    CHECK(table.draws_noise() && table.takes_guidance());
    CHECK(table.rows[0].denoiser.empty() && table.rows[0].guidance);
    CHECK(table.rows[1].denoiser == "unet_reuse" && !table.rows[1].guidance);
    CHECK_EQUAL(table.denoiser, "unet");
    CHECK_EQUAL(*table.graph_sha256, "ab12");
    CHECK_EQUAL(table.rows[1].timestep, 499.0);
    CHECK_EQUAL(table.rows[1].noise_draws, 2);
    const std::vector<Term> &terms = table.rows[0].updates[1].terms;
    CHECK(terms[1].kind == SourceKind::reg && terms[1].index == 1);
    CHECK_EQUAL(terms[1].coefficient, -0.5);
    CHECK(table.rows[0].updates[0].terms[0].kind == SourceKind::model_output);
    CHECK(table.rows[1].updates[0].terms[1].kind == SourceKind::noise);
}

TEST(a_damaged_table_is_refused_with_the_place) {
    const std::vector<BadText> bad = {
        {R"("format_version": 1)", R"("format_version": 2)",
         "t.json has format_version 2; this version reads up to 1: upgrade mutoscope or export"},
        {R"("format_version": 1)", R"("format_version": 0)",
         "t.json: format_version is 0; it must be a whole number >= 1"},
        {R"("DDIMScheduler")", "3", "t.json: scheduler is 3; it must be a string"},
        {R"("num_inference_steps": 2)", R"("num_inference_steps": 2.5)",
         "t.json: num_inference_steps is 2.5; it must be a whole number >= 1"},
        {R"("prediction_type": "epsilon",)", "", "t.json: prediction_type is missing"},
        {"14.5", "null", "t.json: init_noise_sigma is None; it must be a finite number"},
        {R"("num_registers": 2)", R"("num_registers": 0)",
         "num_registers is 0; it must be a whole"},
        {R"("num_registers": 2)", R"("num_registers": 1000000000)",
         "t.json: num_registers is 1000000000; it must lie within 1 and 64"},
        {R"("rows": [)", R"("rows": [], "old": [)", "t.json: the table has no rows; it needs one"},
        {R"("rows": [)", R"("rows": [5, )", "t.json: row 0 is 5; it must be an object"},
        {R"("rows": [)", R"("rows": 3, "old": [)", "t.json: rows is 3; it must be a list"},
        {R"("timestep": 999.0, )", "", "t.json: row 0: timestep is missing"},
        {R"("noise_draws": 2)", R"("noise_draws": -1)",
         "t.json: row 1: noise_draws is -1; it must be a whole number >= 0"},
        {R"("noise_draws": 2)", R"("noise_draws": 1000000)",
         "t.json: row 1: noise_draws is 1000000; it must lie within 0 and 16"},
        {R"("noise_draws": 2)", R"("noise_draws": 0)",
         "t.json: row 1: an update reads noise, but noise_draws is 0"},
        {"[1.5, -0.25]", "[1.5]",
         "t.json: row 1: denoised is [1.5]; it must be two finite numbers"},
        {"[1.5, -0.25]", R"([1.5, "2"])", "denoised is [1.5, '2']; it must be two finite"},
        {R"("denoiser": "unet_reuse")", R"("denoiser": 5)",
         "t.json: row 1: denoiser is 5; it must be a string"},
        {R"("guidance": false)", R"("guidance": null)",
         "t.json: row 1: guidance is None; it must be true or false"},
        {R"("guidance": false)", R"("guidance": 0)", "guidance is 0; it must be true or false"},
        {R"("denoiser": "unet",)", R"("denoiser": [],)",
         "t.json: denoiser is []; it must be a string"},
        {R"("graph_sha256": "ab12")", R"("graph_sha256": true)",
         "t.json: graph_sha256 is True; it must be a string"},
        {R"("into": 1)", R"("into": 2)",
         "t.json: row 0: an update writes register 2; the table has"},
        {"[1, -0.5]", "[7, -0.5]", "t.json: row 0: an update reads register 7; the table has 2"},
        {"[1, -0.5]", "[-1, -0.5]", "t.json: row 0: an update reads register -1; the table has 2"},
        {"[1, -0.5]", "[99999999999999999999, 1]", "reads register 99999999999999999999; the"},
        {"[1, -0.5]", "[0, -0.5]", "t.json: row 0: the update of register 0 names a source twice"},
        {"[1, -0.5]", R"(["sample", -0.5])",
         "t.json: row 0: update 1: terms is ['sample', -0.5]; it must be pairs of a source (a "
         "register, model_output, noise) and a number"},
        {"[1, -0.5]", "[true, -0.5]", "row 0: update 1: terms is [True, -0.5]; it must be pairs"},
        {"[1, -0.5]", R"([1, "1"])", "row 0: update 1: terms is [1, '1']; it must be pairs"},
        {"[1, -0.5]", "[0]", "row 0: update 1: terms is [0]; it must be pairs"},
        {"[1, -0.5]", "[1, 1e999]", "t.json is no JSON file (the number 1e999 is not finite)"},
        {"14.5", "-Infinity", "'Infinity'): export again"},
        {"[[0, 0.1], [1, -0.5]]", "3", "row 0: update 1: terms is 3; it must be a list"},
    };
    for (const BadText &text : bad) {
        CHECK_THROWS(parse_schedule(change(kTable, text.part, text.replacement), "t.json"),
                     text.message);
    }
    CHECK_THROWS(parse_schedule("{", "t.json"), "t.json is no JSON file (a mistake at byte 2");
    CHECK_THROWS(parse_schedule("[1]", "t.json"), "t.json is [1]; it must be an object");
}
