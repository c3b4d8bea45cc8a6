//! The program `reprieve`.

fn main() -> std::process::ExitCode {
    let _failpoints = reprieve::failpoint::prepare();
    reprieve::cli::main()
}
