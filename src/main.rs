//! The program `reprieve`.

fn main() -> std::process::ExitCode {
    reprieve::cli::main()
}
