// A bundle on disk: which files it has, whether they are whole, and which table is which.
#ifndef MUTOSCOPE_BUNDLE_H
#define MUTOSCOPE_BUNDLE_H

#include <string>
#include <vector>

#include "manifest.h"
#include "schedule.h"

namespace mutoscope {

// One bundle whose files are all there, with the sizes that its manifest lists.
class Bundle {
public:
    // The bundle in the folder at path.
    //
    // BundleError: there is none, it is from a later format, or a file of it is absent, has another
    // size, or lies outside the folder.
    static Bundle open(const std::string &path);

    // The folder, as it was given.
    const std::string &path() const { return path_; }
    const Manifest &manifest() const { return manifest_; }

    // The absolute path of a file that the manifest lists and that is about to be loaded; unless it
    // is large, it is compared with its sha256. Raises BundleError.
    std::string load_file(const std::string &name) const;
    // The content of such a file of at most 64 MiB, checked as it is read. Raises BundleError.
    std::string read_file(const std::string &name) const;
    // The absolute path of a component's graph, checked together with its external data.
    //
    // variant: a key of the component's variants; "": its default one.
    // for_cpu: take the graph for processors, if there is one.
    // ParameterError: the bundle has no such component or variant.
    std::string load_graph(const std::string &component_name, const std::string &variant,
                           bool for_cpu) const;
    // Raises BundleError unless a file has the size and the sha256 that the manifest lists.
    void check_digest(const std::string &name) const;

    // Raises ParameterError unless a component has this variant; those without it run their default
    // one (ComponentRecord::choose_variant).
    void check_variant(const std::string &variant) const;
    // Raises ParameterError, which names those there are.
    const ComponentRecord &find_component(const std::string &name) const;

    // The scheduler's name in the manifest, for that name in any case or the class name of
    // diffusers where they are alike: "EulerAncestralDiscreteScheduler" for "euler-ancestral".
    // Raises ParameterError.
    std::string find_scheduler(const std::string &name) const;
    // The path in the bundle of a table. Raises ParameterError with the nearest number of steps.
    std::string find_schedule(const std::string &scheduler, int num_inference_steps) const;
    // Raises BundleError, ParameterError or ScheduleError.
    ScheduleTable load_schedule(const std::string &scheduler, int num_inference_steps) const;

private:
    Bundle(std::string path, std::string root, Manifest manifest);

    std::string find_file(const std::string &name) const;
    void check_size(const std::string &name, const FileRecord &record) const;
    const FileRecord &find_record(const std::string &name) const;

    std::string path_;
    std::string root_;  // absolute, without links
    Manifest manifest_;
};

// The numbers of steps that a scheduler has tables for, in rising order.
std::vector<int> list_steps(const Ordered<std::string> &tables);

// The files that a graph of a component may read beside itself: those of its folder that belong to
// no other graph. One whose name is that of a graph with more behind it, as in model.onnx.data, is
// that graph's alone; a graph for processors without any reads those of the plain graph of its
// variant. What was cut out of another component (weights_of) reads what that one's graph of the
// same variant and kind does; raises BundleError where there is none.
std::vector<std::string> find_external_data(const Manifest &manifest,
                                            const ComponentRecord &component,
                                            const std::string &graph);

}  // namespace mutoscope

#endif
