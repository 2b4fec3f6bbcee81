//! `graftwork`: doctor, finetune, verify, bench.

mod bench;
mod counted;
mod device;
mod doctor;
mod finetune;
mod output;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "graftwork",
    version,
    about = "Trains small adapters on frozen models.",
    after_help = "First steps:\n  graftwork doctor                     what this machine has\n  graftwork finetune                   adapt the shipped trunk to digits it has never seen\n  graftwork verify                     every kernel against the CPU reference\n  graftwork bench                      every op beside its floor"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say which devices, driver and kernels are here
    Doctor(doctor::Args),
    /// Train adapters on a frozen model, with a progress bar and a result table
    Finetune(Box<finetune::Args>),
    /// Hold every op on a device against the CPU reference; exits with 1 on a failure
    Verify(verify::Args),
    /// Time every op beside its floor and its baseline; emulated: count its instructions and traffic
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let code = match asked() {
        Ok(command) => ended(carry_out(command)),
        Err(shown) => shown,
    };
    match output::all_said() {
        Err(error) => {
            output::complain(format_args!("graftwork: standard output: {error}"));
            if code == ExitCode::SUCCESS { ExitCode::FAILURE } else { code }
        }
        Ok(()) => code,
    }
}

/// The command line, or the exit code of one that asks for help or is wrong, which was said.
fn asked() -> Result<Command, ExitCode> {
    let line = Cli::command().mut_subcommand("finetune", finetune::options::grouped);
    let matches = line.try_get_matches();
    let parsed = matches.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (mut cli, matches) = parsed.map_err(|error| {
        output::shown(error.print());
        u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
    })?;
    if let (Command::Finetune(args), Some((_, given))) = (&mut cli.command, matches.subcommand()) {
        args.note_given(given);
    }
    Ok(cli.command)
}

fn carry_out(command: Command) -> graftwork::Result<ExitCode> {
    match command {
        Command::Doctor(args) => doctor::run(&args),
        Command::Finetune(mut args) => finetune::run(&mut args),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(args) => bench::run(&args),
    }
}

fn ended(outcome: graftwork::Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        output::complain(format_args!("graftwork: {error}"));
        ExitCode::from(2)
    })
}
