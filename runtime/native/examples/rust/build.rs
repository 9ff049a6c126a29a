fn main() {
    println!("cargo:rerun-if-env-changed=MUTOSCOPE_LIB_DIR");
    if let Ok(folder) = std::env::var("MUTOSCOPE_LIB_DIR") {
        println!("cargo:rustc-link-search=native={folder}");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
