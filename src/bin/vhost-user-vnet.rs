//! `vhost-user-vnet`: serves a guest's NIC on a vnet. See vhost-user-vnet(1).

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use vnet::cli::backend::Backend;
use vnet::sys::process;
use vnet::vhost_user::attach::{Attach, Frontends, User};
use vnet::vif::serve::{Options, serve};
use vnet::wire::VifKey;

/// As clap's.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments = Backend::parse();
    if arguments.print_capabilities {
        println!("{{\"type\":\"net\"}}");
        return ExitCode::SUCCESS;
    }
    vnet::cli::start_log(arguments.verbose, false);
    let options = match options(arguments) {
        Ok(options) => options,
        Err(error) => return fail(&error, WRONG_USAGE),
    };
    match serve(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string(), error.exit_status()),
    }
}

/// Says in one line why the process ends.
fn fail(why: &str, status: u8) -> ExitCode {
    eprintln!("vhost-user-vnet: {why}");
    ExitCode::from(status)
}

/// The options of the library.
fn options(arguments: Backend) -> Result<Options, String> {
    let (Some(vnet), Some(mac)) = (arguments.vnet, arguments.mac) else {
        return Err("--vnet and --mac are needed".to_owned());
    };
    Ok(Options {
        attach: attach(&arguments)?,
        frontends: frontends(&arguments.frontend_user)?,
        key: VifKey { vnet, mac },
        limits: arguments.limits(),
        varpd: arguments.varpd,
        queue_pairs: arguments.queue_pairs,
        mtu: arguments.mtu,
        source_mac: arguments.source_mac.into(),
        sandbox: !arguments.no_sandbox,
        view: arguments.view.into(),
        receive_offloads: !arguments.no_receive_offloads,
        busy_poll: Duration::from_micros(arguments.busy_poll.into()),
        learn: arguments.learn.into(),
        allowed: arguments.allow_ip,
        policy: arguments.policy,
    })
}

fn attach(arguments: &Backend) -> Result<Attach, String> {
    match (&arguments.socket_path, arguments.fd) {
        (Some(path), _) if arguments.client => Ok(Attach::Connect { path: path.clone() }),
        (Some(path), _) => Ok(Attach::Listen {
            path: path.clone(),
            mode: arguments.socket_mode.0,
            group: arguments.socket_group.as_deref().map(group).transpose()?,
        }),
        (None, Some(fd)) => process::inherited(fd)
            .map(Attach::Fd)
            .map_err(|error| format!("--fd {fd} cannot be used: {error}")),
        (None, None) => Err("--socket-path or --fd is needed".to_owned()),
    }
}

fn group(name: &str) -> Result<u32, String> {
    process::group_id(name).map_err(|error| format!("--socket-group {name}: {error}"))
}

/// The users of `--frontend-user`.
fn frontends(names: &[String]) -> Result<Frontends, String> {
    let user = |name: &String| match process::user_id(name) {
        Ok(uid) => Ok(User { name: name.clone(), uid }),
        Err(error) => Err(format!("--frontend-user {name}: {error}")),
    };
    if names.is_empty() {
        return Ok(Frontends::default());
    }
    names.iter().map(user).collect::<Result<_, _>>().map(Frontends::only)
}
