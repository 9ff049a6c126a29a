# A cross build for aarch64 Linux with Debian's g++-aarch64-linux-gnu.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)

# Headers of header-only libraries (nlohmann-json, stb) may be those of the build machine; libraries
# may not.
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE BOTH)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH)

# The tests were run with qemu 10; Debian 12 has 7.
find_program(MUTOSCOPE_QEMU qemu-aarch64
    HINTS "${CMAKE_CURRENT_LIST_DIR}/../../../build/native-dependencies/bin")
if(MUTOSCOPE_QEMU)
    execute_process(COMMAND "${MUTOSCOPE_QEMU}" --version OUTPUT_VARIABLE _qemu_version ERROR_QUIET)
    string(REGEX MATCH "version ([0-9.]+)" _qemu_version "${_qemu_version}")
    if(CMAKE_MATCH_1 VERSION_GREATER_EQUAL 10)
        set(CMAKE_CROSSCOMPILING_EMULATOR "${MUTOSCOPE_QEMU};-L;/usr/aarch64-linux-gnu")
    else()
        message(WARNING "${MUTOSCOPE_QEMU} is qemu ${CMAKE_MATCH_1}: tests run with qemu 10 or later, "
            "which scripts/install_native_dependencies.sh --cross-aarch64 gets")
        unset(MUTOSCOPE_QEMU CACHE)
    endif()
endif()
