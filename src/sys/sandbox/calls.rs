//! The system calls that a process makes after its start, and who makes them.
//!
//! A call that is missing here kills the process, so a new one belongs into the same commit as the
//! code that makes it. The list is what this code, its crates, Rust's standard library and glibc or
//! musl use; `strace -fc` shows them.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::options;

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// `vhost-user-vnet`.
    Backend,
    /// `varpd`.
    Varpd,
    /// The process beside varpd that enlarges buffers.
    Opener,
}

/// What is done with files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Files {
    pub(super) removes: bool,
    pub(super) reads: bool,
}

/// Calls that backend and varpd make, whatever the arguments.
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

/// Calls that the opener makes, whatever the arguments: it takes requests, answers, and ends.
const OPENER: &[libc::c_long] = &[
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_close,
    // The log, and a panic's last words.
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

/// What is done with fcntl(2): no signal of a descriptor goes to another process (`F_SETOWN`).
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

/// Removal of a socket's file, and the look at it before.
#[cfg(target_arch = "x86_64")]
const REMOVAL: &[libc::c_long] =
    &[libc::SYS_statx, libc::SYS_newfstatat, libc::SYS_lstat, libc::SYS_unlink, libc::SYS_unlinkat];
#[cfg(not(target_arch = "x86_64"))]
const REMOVAL: &[libc::c_long] = &[libc::SYS_statx, libc::SYS_newfstatat, libc::SYS_unlinkat];

/// Reading files anew, those that Landlock leaves in reach, if they are this user's (sys::secret_file).
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
        // Whatever is read, nothing is made, written or emptied.
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

/// What all have.
fn finish(
    profile: Profile,
    mut rules: BTreeMap<i64, Vec<SeccompRule>>,
) -> Result<BpfProgram, BackendError> {
    options::allow(profile, &mut rules)?;
    // The standard library looks so whether what it closes is open, in programs built to be tested.
    let look = || when(1, SeccompCmpOp::Eq, unsigned(libc::F_GETFD));
    rules.entry(libc::SYS_fcntl).or_insert(vec![look()?]);
    // An abort raises its signal so, in its own process; not every Landlock keeps others out of reach.
    let own = std::process::id();
    rules.insert(libc::SYS_tgkill, vec![when(0, SeccompCmpOp::Eq, own.into())?]);
    // No code is ever loaded or written.
    let not_executable = SeccompCmpOp::MaskedEq(unsigned(libc::PROT_EXEC));
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![when(2, not_executable.clone(), 0)?]);
    }
    filter(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

/// Threads yes, processes and namespaces no.
fn threads(rules: &mut BTreeMap<i64, Vec<SeccompRule>>) -> Result<(), BackendError> {
    let thread = unsigned(libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND);
    rules.insert(libc::SYS_clone, vec![when(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    // What `refused` answers instead.
    rules.insert(libc::SYS_clone3, Vec::new());
    let naming = [libc::PR_SET_NAME, libc::PR_SET_VMA]
        .map(|option| when(0, SeccompCmpOp::Eq, unsigned(option)));
    rules.insert(libc::SYS_prctl, naming.into_iter().collect::<Result<_, _>>()?);
    Ok(())
}

/// Which sockets are made, and bound.
fn sockets(
    profile: Profile,
    rules: &mut BTreeMap<i64, Vec<SeccompRule>>,
) -> Result<(), BackendError> {
    let unix = || condition(0, SeccompCmpOp::Eq, unsigned(libc::AF_UNIX));
    match profile {
        Profile::Backend => {
            // Connected ones: no datagram goes to whoever listens somewhere on this host.
            let kind = SeccompCmpOp::MaskedEq(unsigned(SOCKET_TYPES));
            let of_type = |wanted: i32| {
                let kind = condition(1, kind.clone(), unsigned(wanted))?;
                SeccompRule::new(vec![unix()?, kind])
            };
            for call in [libc::SYS_socket, libc::SYS_socketpair] {
                let types = [libc::SOCK_STREAM, libc::SOCK_SEQPACKET].map(of_type);
                rules.insert(call, types.into_iter().collect::<Result<_, _>>()?);
            }
            // To a name that the kernel chooses, as for the connection to the vhost-user daemon: the
            // address is its family alone. A UDP socket whose port the kernel chose could otherwise
            // be disconnected (connect(2), AF_UNSPEC), bound to a group, and hear other vnets.
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

/// Calls that are said not to exist: glibc then makes threads with clone(2), whose flags, other
/// than those of clone3(2), a filter can see.
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

/// A call whose argument `index` compares so.
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
