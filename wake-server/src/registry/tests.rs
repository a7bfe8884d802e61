//! Registries as people write them, right and wrong.

mod inventory;
mod merge;
mod properties;

use super::*;

fn load(files: &[(&str, &str)]) -> Result<Registry, String> {
    let mut reading = Reading::default();
    for (path, text) in files {
        reading.file(Path::new(path), text);
    }
    reading.finish().map_err(|errors| errors.to_string())
}

fn registry(path: &str, text: &str) -> Registry {
    load(&[(path, text)]).unwrap()
}

/// Everything that is wrong with `text`.
fn wrong(path: &str, text: &str) -> String {
    load(&[(path, text)]).unwrap_err()
}

/// A line for each node: what is known of it.
fn lines(registry: &Registry) -> Vec<String> {
    let line = |node: &Node| {
        let mut words = vec![node.name.to_string(), node.role.to_string()];
        words.extend(node.macs.iter().map(ToString::to_string));
        words.extend(node.address.map(|address| address.to_string()));
        words.extend(node.interface.as_ref().map(|interface| format!("via {interface}")));
        words.extend(node.broadcast.map(|broadcast| format!("to {broadcast}")));
        words.extend(
            node.secure_on
                .as_ref()
                .map(|password| format!("password {:02x?}", password.bytes())),
        );
        words.extend(node.group.as_ref().map(|group| format!("of {group}")));
        words.join(" ")
    };
    registry.nodes().map(line).collect()
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

#[test]
fn toml_says_everything() {
    let registry = registry(
        "r.toml",
        r#"
# nodes
[[node]]
name = "Worker-01" # a comment
mac = "52-54-00-00-00-01"
address = "192.0.2.11"
interface = "eth0"
broadcast = "192.0.2.255"
secure_on = "00:11:22:33:44:55"
group = "ceph"

[[node]]
name = "m"
role = "master"
macs = ["52:54:00:00:00:03", "52:54:00:00:00:02"]
"#,
    );
    assert_eq!(
        lines(&registry),
        [
            "m master 52:54:00:00:00:03 52:54:00:00:00:02",
            "worker-01 worker 52:54:00:00:00:01 192.0.2.11 via eth0 to 192.0.2.255 password [00, 11, 22, 33, 44, 55] of ceph",
        ]
    );
    assert_eq!(registry.by_mac(mac("52:54:00:00:00:02")).unwrap().name, name("m"));
    assert_eq!(
        registry.get(&name("worker-01")).unwrap().macs,
        [mac("52:54:00:00:00:01")]
    );
    assert!(registry.get(&name("worker-02")).is_none());
}

#[test]
fn f5_all_that_is_wrong_with_toml_is_told_at_once() {
    assert_eq!(
        wrong(
            "r.toml",
            r#"
[[node]]
nmae = "worker-01"
mac = "52:54:00:00:00:01 eth0"
address = 7
role = "boss"
[[node]]
name = "all"
macs = ["01:00:5e:00:00:01", "00:00:00:00:00:00"]
secure_on = "hunter2"
[[node]]
name = "a"
name = "b"
mac = "52:54:00:00:00:02"
macs = ["52:54:00:00:00:02"]
broadcast = "192.0.2.0"
[nodes]
"#
        ),
        "\
r.toml:2:1: error: this node has no name
  hint: write name = \"worker-01\"
r.toml:3:1: error: unknown key `nmae` in [node]
  hint: did you mean `name`?
r.toml:4:7: error: `mac` cannot be `\"52:54:00:00:00:01 eth0\"`
  hint: `52:54:00:00:00:01 eth0` is no MAC address; write 52:54:00:00:00:01 alone: it is not known what the rest means
r.toml:5:11: error: `address` cannot be `7`
  hint: it takes an IP address
r.toml:6:8: error: `role` cannot be `\"boss\"`
  hint: \"boss\" is no role: master, storage or worker
r.toml:8:8: error: `name` cannot be `\"all\"`
  hint: `all` means every node and cannot be the name of one
r.toml:9:9: error: `macs` cannot be `\"01:00:5e:00:00:01\"`
  hint: 01:00:5e:00:00:01 is a multicast address, not that of one card: its first byte is odd; `ip link` of the node shows it, after link/ether
r.toml:9:30: error: `macs` cannot be `\"00:00:00:00:00:00\"`
  hint: 00:00:00:00:00:00 is nobody's MAC address; `ip link` of the node shows it, after link/ether
r.toml:10:13: error: `secure_on` cannot be what is written here
  hint: no SecureOn password: write its six bytes as aa:bb:cc:dd:ee:ff, or four as 192.0.2.1
r.toml:13:1: error: `name` is written twice
r.toml:15:1: error: both `mac` and `macs`
  hint: write all cards into `macs`, the first one first
r.toml:15:9: error: 52:54:00:00:00:02 is written twice for a
r.toml:16:13: error: `broadcast` cannot be `\"192.0.2.0\"`
  hint: 192.0.2.0 is no broadcast address; `ip address` of this server shows it, after brd
r.toml:17:2: error: unknown key `nodes`
  hint: did you mean `node`?"
    );
    assert!(wrong("r.toml", "[node]\nname = 'a'").contains("write [[node]]"));
    assert!(wrong("r.toml", "node = 5").contains("write [[node]]"));
    assert!(wrong("r.toml", "[[node]\n").contains("r.toml:1:"));
}

#[test]
fn the_conf_of_the_playbook_is_read() {
    let text = "\u{feff}# hostname|ip|mac|interface\r\n\r\nworker-01|192.0.2.11|AA:BB:CC:DD:EE:F1|eth0\r\n worker-02 | | AA:BB:CC:DD:EE:F2 | enp3s0 # spare\r\nworker-03|2001:db8::3|aabb.ccdd.eef3\r\nworker-04|192.0.2.14||";
    let registry = Registry::parse(text, Path::new("wol-registry.conf")).unwrap();
    assert_eq!(
        lines(&registry),
        [
            "worker-01 worker aa:bb:cc:dd:ee:f1 192.0.2.11",
            "worker-02 worker aa:bb:cc:dd:ee:f2 via enp3s0",
            "worker-03 worker aa:bb:cc:dd:ee:f3 2001:db8::3",
            "worker-04 worker 192.0.2.14",
        ]
    );
    assert_eq!(
        registry.notes(),
        ["worker-04 has no MAC address (wol-registry.conf:6): it is woken only once its agent has told one"]
    );
}

#[test]
fn f6_what_is_wrong_with_a_conf_is_told_with_its_line() {
    assert_eq!(
        wrong(
            "wol-registry.conf",
            "\
hostname|ip|mac|interface
a|192.0.2.1|52:54:00:00:00:01 primary|eth0
b|52:54:00:00:00:02
c|192.0.2.300|N/A|eth 0
d|worker.example|52:54:00:00:00:03|eth0|
e f|192.0.2.4|52:54:00:00:00:04|eth0
g|w.example|52:54:00:00:00:05|eth0
h|192.0.2.6|52:54:00:00:00:06|eth0
H|192.0.2.7|52:54:00:00:00:07|eth0
i|192.0.2.8|ff:ff:ff:ff:ff:ff|eth0
"
        ),
        "\
wol-registry.conf:1:10: error: `ip` is of no use as an address: names are not looked up here
wol-registry.conf:1:13: error: `mac` is no MAC address
  hint: write it as aa:bb:cc:dd:ee:ff
wol-registry.conf:2:13: error: `52:54:00:00:00:01 primary` is no MAC address
  hint: write 52:54:00:00:00:01 alone: it is not known what the rest means
wol-registry.conf:3:1: error: 2 fields instead of 4
  hint: a line is hostname|ip|mac|interface, or a comment after #
wol-registry.conf:4:3: error: `192.0.2.300` is no IP address
  hint: write it as 192.0.2.1
wol-registry.conf:4:15: error: `N/A` is no MAC address
  hint: write it as aa:bb:cc:dd:ee:ff
wol-registry.conf:4:19: error: `eth 0` is no name of an interface
  hint: at most 15 characters, as eth0
wol-registry.conf:5:1: error: 5 fields instead of 4
  hint: a line is hostname|ip|mac|interface, or a comment after #
wol-registry.conf:6:1: error: \"e f\" is no node name: letters, digits, `-` and `.`, at most 253, each part beginning and ending with a letter or digit
  hint: a line is hostname|ip|mac|interface, or a comment after #
wol-registry.conf:7:3: error: `w.example` is of no use as an address: names are not looked up here
wol-registry.conf:9:1: error: h is written twice, first in wol-registry.conf:8
  hint: keep one of the lines
wol-registry.conf:10:13: error: ff:ff:ff:ff:ff:ff is everybody's MAC address, not that of one card
  hint: `ip link` of the node shows it, after link/ether"
    );
}

#[test]
fn the_form_is_known_by_the_name_or_the_contents() {
    for (path, text, format) in [
        ("r.toml", "", Format::Toml),
        ("hosts.YML", "", Format::InventoryYaml),
        ("hosts.yaml", "a|b|c", Format::InventoryYaml),
        ("h.ini", "all:", Format::InventoryIni),
        ("wol-registry.conf", "# only\n", Format::Conf),
        ("wol-registry.conf", "worker-01 192.0.2.1", Format::Conf),
        ("r.conf", "[[node]]\n", Format::Toml),
        ("hosts", "# x\n\n[workers]\na\n", Format::InventoryIni),
        ("hosts", "a ansible_host=192.0.2.1", Format::InventoryIni),
        ("hosts", "---\nall:\n", Format::InventoryYaml),
        ("hosts", "all: # every\n", Format::InventoryYaml),
        ("nodes", "a|b|c|d", Format::Conf),
    ] {
        assert_eq!(Format::of(Path::new(path), text), format, "{path} {text:?}");
    }
}

#[test]
fn w1_a_card_of_two_nodes_names_both_with_file_and_line() {
    assert_eq!(
        load(&[
            ("a.conf", "worker-01|192.0.2.1|52:54:00:00:00:01|eth0\n"),
            ("b.ini", "\nworker-02 wol_mac=52-54-00-00-00-01\n"),
        ])
        .unwrap_err(),
        "\
b.ini:2:11: error: 52:54:00:00:00:01 is the MAC address of worker-01 (a.conf:1) and of worker-02 (b.ini:2)
  hint: a card is in one host only: correct one of the two"
    );
    let same = "a|192.0.2.1|52:54:00:00:00:01|\nb|192.0.2.2|52:54:00:00:00:01|\n";
    assert!(
        wrong("a.conf", same).starts_with(
            "a.conf:2:13: error: 52:54:00:00:00:01 is the MAC address of a (a.conf:1) and of b (a.conf:2)"
        )
    );
}

#[test]
fn files_complete_each_other_and_may_not_contradict() {
    let conf = ("a.conf", "w|192.0.2.1|52:54:00:00:00:01|eth0\n");
    let yaml = "workers: {hosts: {w: {wol_mac: [52:54:00:00:00:01, 52:54:00:00:00:02], wol_interface: eth9}}}\n";
    let registry = load(&[conf, ("h.yml", yaml)]).unwrap();
    assert_eq!(
        lines(&registry),
        ["w worker 52:54:00:00:00:01 52:54:00:00:00:02 192.0.2.1 via eth9"]
    );

    let other = "[masters]\nw ansible_host=192.0.2.2 wol_mac=52:54:00:00:00:03 wol_secure_on=1.2.3.4\n";
    let toml = "[[node]]\nname='w'\nrole='storage'\nsecure_on='1.2.3.5'\n";
    assert_eq!(
        load(&[conf, ("h.ini", other), ("r.toml", toml)]).unwrap_err(),
        "\
h.ini:2:3: error: w has the address 192.0.2.2 here and 192.0.2.1 in a.conf:1
  hint: correct one of the two, or take it out
h.ini:2:26: error: w has the MAC address 52:54:00:00:00:03 here and 52:54:00:00:00:01 in a.conf:1
  hint: correct one of the two, or take it out
r.toml:3:1: error: w has the role storage here and master in h.ini:2
  hint: correct one of the two, or take it out
r.toml:4:1: error: w has another SecureOn password in h.ini:2
  hint: correct one of the two, or take it out"
    );
}

#[test]
fn f5_a_group_is_one_word_and_the_same_in_every_file() {
    assert_eq!(
        wrong("r.toml", "[[node]]\nname='w'\ngroup='a b'\n"),
        "\
r.toml:3:7: error: `group` cannot be `'a b'`
  hint: `a b` is no name of a group; letters, digits, -, _ and ., at most 63, as ceph"
    );
    let one = "[[node]]\nname='w'\ngroup='ceph'\n";
    assert!(load(&[("a.toml", one), ("b.toml", one)]).is_ok());
    let other = one.replace("ceph", "minio");
    assert_eq!(
        load(&[("a.toml", one), ("b.toml", &other)]).unwrap_err(),
        "\
b.toml:3:1: error: w has the group minio here and ceph in a.toml:3
  hint: correct one of the two, or take it out"
    );
}

#[test]
fn an_address_of_two_nodes_is_told() {
    let registry = registry(
        "a.conf",
        "a|192.0.2.1|52:54:00:00:00:01|\nb|192.0.2.1|52:54:00:00:00:02|\n",
    );
    assert_eq!(
        registry.conflicts(),
        ["192.0.2.1 is the address of a (a.conf:1) and of b (a.conf:2): it proves neither of them awake"]
    );
}

#[test]
fn f5_complaints_about_several_files_come_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("a.conf"), "x|y\n").unwrap();
    std::fs::write(path("b.toml"), "a\0b").unwrap();
    let errors = Registry::load(&[path("a.conf"), path("b.toml"), path("c.yml")]).unwrap_err();
    let found: Vec<_> = errors
        .complaints
        .iter()
        .map(|complaint| complaint.place.clone())
        .collect();
    let place = |name: &str, line, column| Place {
        path: path(name),
        line,
        column,
    };
    assert_eq!(
        found,
        [place("a.conf", 1, 1), place("b.toml", 1, 2), place("c.yml", 0, 0)]
    );
    let text = errors.to_string();
    assert!(
        text.ends_with("c.yml: error: cannot be read: No such file or directory (os error 2)"),
        "{text}"
    );
}

#[test]
fn no_file_is_an_empty_registry() {
    let registry = Registry::load(&[]).unwrap();
    assert_eq!(registry.nodes().len(), 0);
    for path in ["a.conf", "a.toml", "a.yml", "a.ini", "a"] {
        assert_eq!(
            lines(&Registry::parse("# nothing\n", Path::new(path)).unwrap()),
            [""; 0],
            "{path}"
        );
    }
}

#[test]
fn ten_thousand_nodes_are_read() {
    let lines: String = (0..10_000)
        .map(|n| {
            format!(
                "w-{n}|10.0.{}.{}|52:54:00:00:{:02x}:{:02x}|eth0\n",
                n / 250,
                n % 250 + 1,
                n / 256,
                n % 256
            )
        })
        .collect();
    assert_eq!(registry("a.conf", &lines).nodes().len(), 10_000);
    let hosts: String = (0..10_000)
        .map(|n| {
            format!(
                "    w-{n}:\n      wol_mac: 52:54:00:00:{:02x}:{:02x}\n",
                n / 256,
                n % 256
            )
        })
        .collect();
    assert_eq!(
        registry("h.yml", &format!("all:\n  hosts:\n{hosts}")).nodes().len(),
        10_000
    );
}

#[test]
fn f6_a_small_file_that_says_very_much_is_refused() {
    let many = "w[1:100000] a=b\n".repeat(1000);
    assert!(wrong("h.ini", &many).contains("more than 100000 hosts, or 1000000 variables of hosts"));
    let groups: String = (0..1001).map(|n| format!("[g{n}]\n")).collect();
    assert!(wrong("h.ini", &groups).contains("h.ini: error: has more than 1000 groups"));
    for (path, open) in [
        ("r.toml", "x = ["),
        ("r.toml", "[[node]]\na."),
        ("r.yml", "["),
        ("r.yml", "{a: "),
        ("r.yml", "- "),
    ] {
        let (first, deep) = open.split_at(open.len() - 1);
        let nested = format!("{first}{}", deep.repeat(100_000));
        assert!(wrong(path, &nested).contains(path), "{open}");
        assert!(wrong(path, &open.repeat(100_000)).contains(path), "{open}");
    }
    let lines = format!("{}\n", "a|b".repeat(100_000));
    assert!(wrong("r.conf", &lines).contains("fields instead of 4"));
}
