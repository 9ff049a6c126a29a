# Finds onnxruntime: Onnxruntime::Onnxruntime, Onnxruntime_LIBRARY, Onnxruntime_INCLUDE_DIR.
#
# Looked for in this order; what was given comes first:
#   ONNXRUNTIME_ROOT         a folder with include/ (or include/onnxruntime/) and lib/
#   ONNXRUNTIME_INCLUDE_DIR  the folder of onnxruntime_c_api.h
#   ONNXRUNTIME_LIBRARY      libonnxruntime.so
#   the system               Debian's libonnxruntime-dev
#   the Python package       libonnxruntime.so.1.x of `Python3_EXECUTABLE -m pip install onnxruntime`;
#                            it has no headers, these come from one of the places above
#
# The component "headers" makes them necessary; programs that only link need none.

set(_onnxruntime_include_folders "")
set(_onnxruntime_library_folders "")
if(ONNXRUNTIME_ROOT)
    list(APPEND _onnxruntime_include_folders "${ONNXRUNTIME_ROOT}/include")
    list(APPEND _onnxruntime_library_folders "${ONNXRUNTIME_ROOT}")
endif()
if(ONNXRUNTIME_INCLUDE_DIR)
    list(INSERT _onnxruntime_include_folders 0 "${ONNXRUNTIME_INCLUDE_DIR}")
endif()

# A folder that was given lies outside the sysroot of a cross build.
if(_onnxruntime_include_folders)
    find_path(Onnxruntime_INCLUDE_DIR onnxruntime_c_api.h
        PATHS ${_onnxruntime_include_folders}
        PATH_SUFFIXES onnxruntime onnxruntime/core/session
        NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)
endif()
find_path(Onnxruntime_INCLUDE_DIR onnxruntime_c_api.h
    PATH_SUFFIXES onnxruntime onnxruntime/core/session)

if(ONNXRUNTIME_LIBRARY)
    set(Onnxruntime_LIBRARY "${ONNXRUNTIME_LIBRARY}" CACHE FILEPATH "onnxruntime's library")
endif()
if(_onnxruntime_library_folders)
    find_library(Onnxruntime_LIBRARY onnxruntime
        PATHS ${_onnxruntime_library_folders}
        PATH_SUFFIXES lib lib64 "lib/${CMAKE_LIBRARY_ARCHITECTURE}"
        NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)
endif()
find_library(Onnxruntime_LIBRARY onnxruntime)

# The Python package has its library under its full version alone, where the name that programs are
# linked to and look for is libonnxruntime.so.1: links in the build folder, nothing in the package.
function(_onnxruntime_link_python_package)
    if(NOT Python3_EXECUTABLE)
        find_program(Python3_EXECUTABLE NAMES python3 python)
    endif()
    if(NOT Python3_EXECUTABLE OR CMAKE_CROSSCOMPILING)
        return()
    endif()
    execute_process(
        COMMAND "${Python3_EXECUTABLE}" -c
            "import importlib.util as u; print(u.find_spec('onnxruntime').submodule_search_locations[0])"
        OUTPUT_VARIABLE package OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET
        RESULT_VARIABLE failed)
    file(GLOB libraries "${package}/capi/libonnxruntime.so.*")
    if(failed OR NOT libraries)
        return()
    endif()
    list(GET libraries 0 library)
    set(folder "${CMAKE_BINARY_DIR}/onnxruntime")
    file(MAKE_DIRECTORY "${folder}")
    file(CREATE_LINK "${library}" "${folder}/libonnxruntime.so.1" SYMBOLIC)
    file(CREATE_LINK libonnxruntime.so.1 "${folder}/libonnxruntime.so" SYMBOLIC)
    # Those of execution providers are looked for beside it.
    file(GLOB providers "${package}/capi/libonnxruntime_providers_*.so")
    foreach(provider IN LISTS providers)
        get_filename_component(name "${provider}" NAME)
        file(CREATE_LINK "${provider}" "${folder}/${name}" SYMBOLIC)
    endforeach()
    message(STATUS "onnxruntime of the Python package: ${library}")
    set(Onnxruntime_LIBRARY "${folder}/libonnxruntime.so" CACHE FILEPATH "onnxruntime's library"
        FORCE)
endfunction()
if(NOT Onnxruntime_LIBRARY)
    _onnxruntime_link_python_package()
endif()

set(_onnxruntime_wanted Onnxruntime_LIBRARY)
if("headers" IN_LIST Onnxruntime_FIND_COMPONENTS)
    list(APPEND _onnxruntime_wanted Onnxruntime_INCLUDE_DIR)
    if(Onnxruntime_INCLUDE_DIR)
        set(Onnxruntime_headers_FOUND TRUE)
    endif()
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Onnxruntime
    REQUIRED_VARS ${_onnxruntime_wanted}
    REASON_FAILURE_MESSAGE
        "\n  Give -DONNXRUNTIME_ROOT=DIR (DIR/include, DIR/lib), or install libonnxruntime-dev, or run\n  scripts/install_native_dependencies.sh, give the folder of headers that it names as\n  -DONNXRUNTIME_INCLUDE_DIR=DIR and a Python that has onnxruntime as -DPython3_EXECUTABLE=FILE")

if(Onnxruntime_FOUND AND NOT TARGET Onnxruntime::Onnxruntime)
    add_library(Onnxruntime::Onnxruntime SHARED IMPORTED)
    set_target_properties(Onnxruntime::Onnxruntime PROPERTIES
        IMPORTED_LOCATION "${Onnxruntime_LIBRARY}")
    if(Onnxruntime_INCLUDE_DIR)
        # As of the system: warnings about them are not ours.
        set_target_properties(Onnxruntime::Onnxruntime PROPERTIES
            INTERFACE_INCLUDE_DIRECTORIES "${Onnxruntime_INCLUDE_DIR}")
    endif()
endif()
mark_as_advanced(Onnxruntime_INCLUDE_DIR Onnxruntime_LIBRARY)
