# Finds onnxruntime: Onnxruntime::Onnxruntime, Onnxruntime_LIBRARY, Onnxruntime_INCLUDE_DIR.
#
# What is given is taken, and if it does not have what is needed, nothing else is:
#   ONNXRUNTIME_INCLUDE_DIR  the folder of onnxruntime_c_api.h
#   ONNXRUNTIME_LIBRARY      libonnxruntime.so, or libonnxruntime.so.1.x
#   ONNXRUNTIME_ROOT         a folder with include/ (or include/onnxruntime/) and lib/, for whichever
#                            of these two is not given
# What is not given is looked for in this order:
#   the system               Debian's libonnxruntime-dev
#   the Python package       libonnxruntime.so.1.x of `Python3_EXECUTABLE -m pip install onnxruntime`;
#                            it has no headers
# It is looked for again each time that CMake runs, so that changes of both take effect.
#
# The component "headers" makes them necessary; programs that only link need none.

unset(Onnxruntime_INCLUDE_DIR CACHE)
unset(Onnxruntime_LIBRARY CACHE)
set(_onnxruntime_problem "")
set(_onnxruntime_header_suffixes onnxruntime onnxruntime/core/session)

# ---- headers

# A folder that was given lies outside the sysroot of a cross build.
set(_onnxruntime_given "")
if(ONNXRUNTIME_INCLUDE_DIR)
    set(_onnxruntime_given "${ONNXRUNTIME_INCLUDE_DIR}")
    set(_onnxruntime_named "ONNXRUNTIME_INCLUDE_DIR (${ONNXRUNTIME_INCLUDE_DIR})")
elseif(ONNXRUNTIME_ROOT)
    set(_onnxruntime_given "${ONNXRUNTIME_ROOT}/include")
    set(_onnxruntime_named "ONNXRUNTIME_ROOT (${ONNXRUNTIME_ROOT}/include)")
endif()
if(_onnxruntime_given)
    find_path(Onnxruntime_INCLUDE_DIR onnxruntime_c_api.h
        PATHS "${_onnxruntime_given}"
        PATH_SUFFIXES ${_onnxruntime_header_suffixes}
        NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)
    if(NOT Onnxruntime_INCLUDE_DIR AND "headers" IN_LIST Onnxruntime_FIND_COMPONENTS)
        string(APPEND _onnxruntime_problem
            "\n  ${_onnxruntime_named} has no onnxruntime_c_api.h.")
    endif()
else()
    find_path(Onnxruntime_INCLUDE_DIR onnxruntime_c_api.h
        PATH_SUFFIXES ${_onnxruntime_header_suffixes})
endif()

# ---- the library

function(_onnxruntime_find_in_python)
    if(CMAKE_CROSSCOMPILING)
        return()
    endif()
    if(NOT Python3_EXECUTABLE)
        find_program(Python3_EXECUTABLE NAMES python3 python)
    endif()
    if(NOT Python3_EXECUTABLE)
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
    set(Onnxruntime_LIBRARY "${library}" CACHE FILEPATH "onnxruntime's library" FORCE)
endfunction()

# The Python package has its library under its full version alone, where programs look for
# libonnxruntime.so.1: links in the build folder, nothing in the package. They lie in a folder of that
# name, so that what was linked to another version is linked again.
function(_onnxruntime_link_soname)
    get_filename_component(name "${Onnxruntime_LIBRARY}" NAME)
    get_filename_component(source "${Onnxruntime_LIBRARY}" DIRECTORY)
    if(NOT name MATCHES "^libonnxruntime\\.so\\.[0-9]+\\.[0-9.]+$" OR
            EXISTS "${source}/libonnxruntime.so.1")
        return()
    endif()
    set(folder "${CMAKE_BINARY_DIR}/onnxruntime/${name}")
    file(MAKE_DIRECTORY "${folder}")
    file(CREATE_LINK "${Onnxruntime_LIBRARY}" "${folder}/libonnxruntime.so.1" SYMBOLIC)
    file(CREATE_LINK libonnxruntime.so.1 "${folder}/libonnxruntime.so" SYMBOLIC)
    # Those of execution providers are looked for beside it.
    file(GLOB providers "${source}/libonnxruntime_providers_*.so")
    foreach(provider IN LISTS providers)
        get_filename_component(provider_name "${provider}" NAME)
        file(CREATE_LINK "${provider}" "${folder}/${provider_name}" SYMBOLIC)
    endforeach()
    set(Onnxruntime_LIBRARY "${folder}/libonnxruntime.so" CACHE FILEPATH "onnxruntime's library"
        FORCE)
endfunction()

if(ONNXRUNTIME_LIBRARY)
    if(EXISTS "${ONNXRUNTIME_LIBRARY}" AND NOT IS_DIRECTORY "${ONNXRUNTIME_LIBRARY}")
        set(Onnxruntime_LIBRARY "${ONNXRUNTIME_LIBRARY}" CACHE FILEPATH "onnxruntime's library")
    else()
        string(APPEND _onnxruntime_problem
            "\n  ONNXRUNTIME_LIBRARY (${ONNXRUNTIME_LIBRARY}) is not a file.")
    endif()
elseif(ONNXRUNTIME_ROOT)
    find_library(Onnxruntime_LIBRARY onnxruntime
        PATHS "${ONNXRUNTIME_ROOT}"
        PATH_SUFFIXES lib lib64 "lib/${CMAKE_LIBRARY_ARCHITECTURE}"
        NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)
    if(NOT Onnxruntime_LIBRARY)
        string(APPEND _onnxruntime_problem
            "\n  ONNXRUNTIME_ROOT (${ONNXRUNTIME_ROOT}) has no lib/libonnxruntime.so.")
    endif()
else()
    find_library(Onnxruntime_LIBRARY onnxruntime)
    if(NOT Onnxruntime_LIBRARY)
        _onnxruntime_find_in_python()
    endif()
endif()
if(Onnxruntime_LIBRARY)
    message(STATUS "onnxruntime: ${Onnxruntime_LIBRARY}")
    _onnxruntime_link_soname()
endif()

# ---- the result

set(_onnxruntime_wanted Onnxruntime_LIBRARY)
if("headers" IN_LIST Onnxruntime_FIND_COMPONENTS)
    list(APPEND _onnxruntime_wanted Onnxruntime_INCLUDE_DIR)
    if(Onnxruntime_INCLUDE_DIR)
        set(Onnxruntime_headers_FOUND TRUE)
    endif()
endif()
if(NOT _onnxruntime_problem)
    set(_onnxruntime_problem
        "\n  Give -DONNXRUNTIME_ROOT=DIR (DIR/include, DIR/lib), or install libonnxruntime-dev, or run\n  scripts/install_native_dependencies.sh, give the folder of headers that it names as\n  -DONNXRUNTIME_INCLUDE_DIR=DIR and a Python that has onnxruntime as -DPython3_EXECUTABLE=FILE")
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Onnxruntime
    REQUIRED_VARS ${_onnxruntime_wanted}
    REASON_FAILURE_MESSAGE "${_onnxruntime_problem}")

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
