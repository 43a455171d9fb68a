//! The manual pages are made from the command lines, the list of counters and what is written by
//! hand in `man/`; those that are committed are up to date.
//!
//! `VNET_BLESS=1 cargo test --test man` writes them anew.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_mangen::Man;
use vnet::cli::{self, Page};
use vnet::config::Config;
use vnet::hosts::HostsCounters;
use vnet::mapper::MapperCounters;
use vnet::metrics::{VARPD_GAUGES, VarpdCounters, VifCounters};
use vnet::security::sadb::SadbCounters;

/// The formats in vnet(7), in this order, between its head and the counters.
const FORMATS: [&str; 6] =
    ["names.inc.7", "varp.inc.7", "hello.inc.7", "relays.inc.7", "echo.inc.7", "control.inc.7"];

/// Directory of the pages.
fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("man")
}

/// `NAME.SECTION`.
fn file_name(page: &Page) -> String {
    format!("{}.{}", page.command.get_name(), page.section)
}

/// The page: what the command line says, then what was written by hand.
fn render(page: &Page) -> String {
    let mut command = page.command.clone().disable_help_subcommand(true);
    command.build();
    let man = Man::new(command.clone()).section(page.section).date("").manual("vnet");
    let has_commands = command.has_subcommands();
    let mut out = Vec::new();
    man.render_title(&mut out).unwrap();
    man.render_name_section(&mut out).unwrap();
    man.render_synopsis_section(&mut out).unwrap();
    man.render_description_section(&mut out).unwrap();
    man.render_options_section(&mut out).unwrap();
    let mut text = String::from_utf8(out).unwrap();
    if has_commands {
        text.push_str(".SH COMMANDS\n");
        command.get_subcommands().for_each(|c| text.push_str(&command_section("", c)));
    }
    let extra = directory().join(format!("{}.extra", file_name(page)));
    tidy(&text) + &fs::read_to_string(&extra).unwrap_or_default()
}

/// Takes out what clap_mangen says before every section, and blanks at line ends.
fn tidy(roff: &str) -> String {
    let prologue = |line: &str| line.starts_with(".ie \\n(.g") || line.starts_with(".el .ds Aq");
    let lines =
        roff.lines().filter(|line| !prologue(line)).map(|line| format!("{}\n", line.trim_end()));
    let body: String = lines.collect();
    format!(".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n{body}")
}

/// vnet(7): written by hand, with the formats and the counters.
fn render_overview() -> String {
    let read = |name: &str| fs::read_to_string(directory().join(name)).unwrap_or_default();
    let formats: String = FORMATS.iter().map(|name| read(name)).collect();
    read("vnet.7.head") + &formats + &counters() + &read("vnet.7.tail")
}

/// The description of every counter.
fn counters() -> String {
    let mut text = ".SH COUNTERS\n.B vnet show stats\nshows these counters. Counters of drops have _drop_ in their \
                    names. If a description begins with \"of\" and the name of another counter, that counter includes \
                    this one.\n"
        .to_owned();
    let sets = [
        ("Of a vif", VifCounters::descriptions()),
        ("Of varpd, at this moment", VARPD_GAUGES.map(|(name, _, about)| (name, about)).to_vec()),
        ("Of varpd", VarpdCounters::descriptions()),
        ("Of varpd's address resolution", MapperCounters::descriptions()),
        ("Of varpd's keys", SadbCounters::descriptions()),
        ("Of varpd's table of hosts", HostsCounters::descriptions()),
    ];
    for (title, counters) in sets {
        writeln!(text, ".SS {title}").unwrap();
        for (name, about) in counters {
            writeln!(text, ".TP\n.B {name}\n{}", about.replace('-', "\\-")).unwrap();
        }
    }
    text
}

/// A command of a program that has several, as a subsection, and those that it has itself.
fn command_section(above: &str, command: &Command) -> String {
    let man = Man::new(command.clone());
    let mut synopsis = Vec::new();
    man.render_synopsis_section(&mut synopsis).unwrap();
    let mut options = Vec::new();
    man.render_options_section(&mut options).unwrap();
    let body = |roff: Vec<u8>| {
        let text = String::from_utf8(roff).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with(".SH"));
        lines.map(|line| format!("{line}\n")).collect::<String>()
    };
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let name = format!("{above}{}", command.get_name());
    let own = format!(".SS {name}\n{}.PP\n{about}.\n{}", body(synopsis), body(options));
    let below = command.get_subcommands().map(|c| command_section(&format!("{name} "), c));
    std::iter::once(own).chain(below).collect()
}

#[test]
fn pages_are_up_to_date() {
    let commands = cli::pages();
    let mut pages: Vec<_> = commands.iter().map(|page| (file_name(page), render(page))).collect();
    pages.push(("vnet.7".into(), render_overview()));
    for (name, want) in pages {
        let path = directory().join(name);
        if std::env::var_os("VNET_BLESS").is_some() {
            fs::write(&path, &want).unwrap();
        }
        let got = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            got == want,
            "{} is out of date; write it with: VNET_BLESS=1 cargo test --test man",
            path.display()
        );
    }
}

#[test]
fn every_counter_is_explained() {
    let text = render_overview();
    for name in VifCounters::descriptions().into_iter().map(|(name, _)| name) {
        assert!(text.contains(&format!("\n.B {name}\n")), "{name}");
    }
}

#[test]
fn every_option_is_explained() {
    for page in cli::pages() {
        let text = render(&page);
        let mut command = page.command.clone();
        command.build();
        for option in command.get_arguments().filter_map(|arg| arg.get_long()) {
            let escaped = option.replace('-', "\\-");
            assert!(text.contains(&format!("\\-\\-{escaped}")), "{}: {option}", file_name(&page));
        }
    }
}

/// The names of the keys in a section of varpd's configuration, as the complaint about one that is
/// not known lists them.
fn keys(section: &str) -> Vec<String> {
    let text = format!("{section}\nno-such-key = 1\n");
    let complaint = Config::parse(&text, Path::new("")).unwrap_err().to_string();
    let (_, names) = complaint.split_once("expected one of ").unwrap();
    names.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_key_is_explained_and_in_the_example() {
    let page = fs::read_to_string(directory().join("varpd.8.extra")).unwrap().replace('\\', "");
    let example = directory().join("../qemu-examples/varpd.toml");
    let example = fs::read_to_string(example).unwrap();
    let shows = |key: &str| {
        let mut words = example.split(['\n', '#', '.', '(']);
        words.any(|word| word.strip_prefix(key).is_some_and(|rest| rest.starts_with(" = ")))
    };
    let sections = ["limits", "timers", "security", "vnet"];
    for section in ["", "[limits]", "[timers]", "[security]", "[vnet.42]"] {
        let keys = keys(section);
        assert!(keys.len() > 3, "{section}: {keys:?}");
        for key in keys.iter().filter(|key| !sections.contains(&key.as_str())) {
            assert!(shows(key), "{section} {key}: not in qemu-examples/varpd.toml");
            let is_told = page.split([' ', '"', ',', '\n']).any(|word| word == key);
            assert!(is_told, "{section} {key}: not in varpd(8)");
        }
    }
}

#[test]
fn hand_written_parts_belong_to_a_page() {
    let pages: Vec<String> = cli::pages().iter().map(file_name).collect();
    for entry in fs::read_dir(directory()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(page) = name.strip_suffix(".extra") {
            assert!(pages.iter().any(|p| p == page), "{name} belongs to no page");
        }
    }
}
