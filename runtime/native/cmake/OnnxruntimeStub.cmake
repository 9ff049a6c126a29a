# onnxruntime's library gives its one function the version of the release (OrtGetApiBase@VERS_1.32.0),
# and what is linked to it loads with that release alone. Its C API is asked for by number instead, so
# that any release since that number will do: the shared library is linked to a stub, which has the
# function without a version. The stub is not installed, and nothing runs with it.
set(_stub_folder "${PROJECT_BINARY_DIR}/onnxruntime-stub")
file(CONFIGURE OUTPUT "${_stub_folder}/stub.c"
    CONTENT "void OrtGetApiBase(void);\nvoid OrtGetApiBase(void) {}\n")
add_library(onnxruntime_stub SHARED "${_stub_folder}/stub.c")
set_target_properties(onnxruntime_stub PROPERTIES
    OUTPUT_NAME onnxruntime
    SOVERSION 1
    C_VISIBILITY_PRESET default
    LIBRARY_OUTPUT_DIRECTORY "${_stub_folder}")

# Link a library to the stub; in the build tree it finds the real one.
function(link_onnxruntime_stub library)
    set(folder "${PROJECT_BINARY_DIR}/onnxruntime-stub")
    add_dependencies(${library} onnxruntime_stub)
    # By -L and -l: of what is linked as a target or a path, CMake puts the folder into the RPATH.
    target_link_libraries(${library} PRIVATE "-L${folder}" -lonnxruntime)
    target_link_options(${library} INTERFACE "$<BUILD_INTERFACE:LINKER:-rpath-link,${folder}>")
    get_filename_component(real_folder "${Onnxruntime_LIBRARY}" DIRECTORY)
    set_target_properties(${library} PROPERTIES BUILD_RPATH "${real_folder}")
endfunction()
