//! The system calls that a process may make after its start, with the code that makes them.
//!
//! A call that is missing here kills the process, so add a new one in the same commit as the code
//! that makes it. The list contains the calls of this code, its crates, Rust's standard library and
//! glibc or musl; `strace -fc` shows them.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::options;

/// The program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// `vhost-user-vnet`.
    Backend,
    /// `varpd`.
    Varpd,
    /// varpd's opener, which enlarges buffers.
    Opener,
}

/// Access to files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Files {
    pub(super) removes: bool,
    pub(super) reads: bool,
}

/// Calls of backend and varpd, with any arguments.
const COMMON: &[libc::c_long] = &[
    // sys::event, the crates' epoll loops, sys::signal.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    // Sockets.
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    // Descriptors.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_lseek,
    // Memory: the allocator, stacks of threads.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // process::unlock: guest memory is QEMU's to lock.
    libc::SYS_munlock,
    // Threads, locks and their end.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    // Time and randomness.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_timerfd_settime,
];

/// Calls of the opener, with any arguments: it receives requests, answers, and exits.
const OPENER: &[libc::c_long] = &[
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_close,
    // The log, and the message of a panic.
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_clock_gettime,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Operations of fcntl(2), without those that send signals to another process (`F_SETOWN`).
const FCNTL: &[libc::c_int] = &[
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
];

/// A socket's type without its flags (`SOCK_TYPE_MASK` of linux/net.h).
const SOCKET_TYPES: i32 = 0xf;

/// Old forms of the same, which only this architecture has.
#[cfg(target_arch = "x86_64")]
const OLD: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_dup2];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[libc::c_long] = &[];

/// Removal of a socket's file, after a check.
#[cfg(target_arch = "x86_64")]
const REMOVAL: &[libc::c_long] =
    &[libc::SYS_statx, libc::SYS_newfstatat, libc::SYS_lstat, libc::SYS_unlink, libc::SYS_unlinkat];
#[cfg(not(target_arch = "x86_64"))]
const REMOVAL: &[libc::c_long] = &[libc::SYS_statx, libc::SYS_newfstatat, libc::SYS_unlinkat];

/// Reading files that Landlock leaves accessible, after a check of the owner (sys::secret_file).
const READING: &[libc::c_long] = &[libc::SYS_statx, libc::SYS_newfstatat, libc::SYS_geteuid];

/// The allow-list.
pub(super) fn allowed(profile: Profile, files: Files) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut allow = |calls: &[libc::c_long]| {
        rules.extend(calls.iter().map(|call| (*call, Vec::new())));
    };
    if profile == Profile::Opener {
        allow(OPENER);
        return finish(profile, rules);
    }
    allow(COMMON);
    allow(OLD);
    if files.removes {
        allow(REMOVAL);
    }
    if files.reads {
        allow(READING);
    }
    if profile == Profile::Varpd {
        // The memory of lanes.
        allow(&[libc::SYS_memfd_create, libc::SYS_ftruncate]);
    }
    if files.reads {
        // Reading only: no creating, writing or truncating.
        let writes = unsigned(libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC);
        let read_only = when(2, SeccompCmpOp::MaskedEq(writes), unsigned(libc::O_RDONLY))?;
        rules.insert(libc::SYS_openat, vec![read_only]);
    }
    sockets(profile, &mut rules)?;
    let commands = FCNTL.iter().map(|command| when(1, SeccompCmpOp::Eq, unsigned(*command)));
    rules.insert(libc::SYS_fcntl, commands.collect::<Result<_, _>>()?);
    threads(&mut rules)?;
    let mut requests = vec![libc::FIONBIO, libc::FIONREAD, libc::TCGETS];
    if profile == Profile::Varpd {
        // sys::link: an interface's MTU.
        requests.push(libc::SIOCGIFMTU);
    }
    let requests = requests.into_iter().map(|request| when(1, SeccompCmpOp::Eq, request));
    rules.insert(libc::SYS_ioctl, requests.collect::<Result<_, _>>()?);
    finish(profile, rules)
}

/// Rules for all programs.
fn finish(
    profile: Profile,
    mut rules: BTreeMap<i64, Vec<SeccompRule>>,
) -> Result<BpfProgram, BackendError> {
    options::allow(profile, &mut rules)?;
    // In debug builds the standard library checks that a descriptor is open before closing it.
    let look = || when(1, SeccompCmpOp::Eq, unsigned(libc::F_GETFD));
    rules.entry(libc::SYS_fcntl).or_insert(vec![look()?]);
    // abort(3) signals its own process; an older Landlock does not bar signals to others.
    let own = std::process::id();
    rules.insert(libc::SYS_tgkill, vec![when(0, SeccompCmpOp::Eq, own.into())?]);
    // No executable mappings.
    let not_executable = SeccompCmpOp::MaskedEq(unsigned(libc::PROT_EXEC));
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![when(2, not_executable.clone(), 0)?]);
    }
    filter(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

/// Permits threads, but no processes and namespaces.
fn threads(rules: &mut BTreeMap<i64, Vec<SeccompRule>>) -> Result<(), BackendError> {
    let thread = unsigned(libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND);
    rules.insert(libc::SYS_clone, vec![when(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    // `refused` handles this call.
    rules.insert(libc::SYS_clone3, Vec::new());
    let naming = [libc::PR_SET_NAME, libc::PR_SET_VMA]
        .map(|option| when(0, SeccompCmpOp::Eq, unsigned(option)));
    rules.insert(libc::SYS_prctl, naming.into_iter().collect::<Result<_, _>>()?);
    Ok(())
}

/// Permitted kinds of sockets, and bind(2).
fn sockets(
    profile: Profile,
    rules: &mut BTreeMap<i64, Vec<SeccompRule>>,
) -> Result<(), BackendError> {
    let unix = || condition(0, SeccompCmpOp::Eq, unsigned(libc::AF_UNIX));
    match profile {
        Profile::Backend => {
            // Connected kinds only: no datagrams to other listeners on this host.
            let kind = SeccompCmpOp::MaskedEq(unsigned(SOCKET_TYPES));
            let of_type = |wanted: i32| {
                let kind = condition(1, kind.clone(), unsigned(wanted))?;
                SeccompRule::new(vec![unix()?, kind])
            };
            for call in [libc::SYS_socket, libc::SYS_socketpair] {
                let types = [libc::SOCK_STREAM, libc::SOCK_SEQPACKET].map(of_type);
                rules.insert(call, types.into_iter().collect::<Result<_, _>>()?);
            }
            // To a name that the kernel chooses, as for the connection to the vhost-user daemon:
            // the address is its family alone. A UDP socket whose port the kernel chose could
            // otherwise be disconnected (connect(2), AF_UNSPEC), bound to a group, and hear other
            // vnets.
            let len = u64::try_from(size_of::<libc::sa_family_t>()).unwrap_or(0);
            rules.insert(libc::SYS_bind, vec![when(2, SeccompCmpOp::Eq, len)?]);
        }
        Profile::Varpd => {
            let of_domain = |domain| when(0, SeccompCmpOp::Eq, unsigned(domain));
            let domains = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6].map(of_domain);
            rules.insert(libc::SYS_socket, domains.into_iter().collect::<Result<_, _>>()?);
            rules.insert(libc::SYS_socketpair, vec![SeccompRule::new(vec![unix()?])?]);
            rules.insert(libc::SYS_bind, Vec::new());
        }
        Profile::Opener => {}
    }
    Ok(())
}

/// Calls that fail with ENOSYS: glibc then makes threads with clone(2), whose flags a filter can
/// see, unlike those of clone3(2).
pub(super) fn refused() -> Result<BpfProgram, BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    filter(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.unsigned_abs()))
}

fn filter(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, otherwise, listed, architecture)?.try_into()
}

/// A condition on the argument `index` of a call.
fn when(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![condition(index, operator, value)?])
}

pub(super) fn condition(
    index: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
}

/// Constants of libc are signed where the kernel's are not.
pub(super) fn unsigned(constant: libc::c_int) -> u64 {
    u64::from(constant.cast_unsigned())
}
