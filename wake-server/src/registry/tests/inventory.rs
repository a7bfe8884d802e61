//! Ansible inventories, in both forms.

use super::*;

/// The inventory of a cluster as its documentation shows it, and more.
pub(super) const HOSTS_YML: &str = r#"---
all:
  vars:
    ansible_user: root
    wol_broadcast: 192.0.2.255
  children:
    linux_nodes:
      children:
        control_plane:
          hosts:
            masternode:
              ansible_host: 192.0.2.63
              ansible_connection: local
              wol_mac: "52:54:00:68:cb:bf"
        workers:
          hosts:
            storagenode:
              ansible_host: 192.0.2.61
              wol_mac: 52:54:00:12:34:56 # unquoted, and sexagesimal to YAML 1.1
            worker-[01:02]:
            numeric:
              wol_mac: 525400123457
              ansible_host: worker.example
          vars:
            wol_interface: eth1
    storage:
      hosts:
        storagenode:
    windows_nodes:
      hosts:
        homelab:
          ansible_host: 192.0.2.62
          ansible_password: "{{ vault_windows_ansible_password }}"
          secret: !vault |
            $ANSIBLE_VAULT;1.1;AES256
            6666
          wol_mac: ["52:54:00:30:d6:63", 52-54-00-30-d6-64]
          wol_secure_on: 00:11:22:33:44:55
          ports: [80, 443]
        localhost:
          ansible_connection: local
        under_score:
"#;

#[test]
fn an_inventory_in_yaml_is_read() {
    let registry = registry("hosts.yml", HOSTS_YML);
    assert_eq!(
        lines(&registry),
        [
            "homelab worker 52:54:00:30:d6:63 52:54:00:30:d6:64 192.0.2.62 to 192.0.2.255 password [00, 11, 22, 33, 44, 55]",
            "masternode master 52:54:00:68:cb:bf 192.0.2.63 to 192.0.2.255",
            "numeric worker 52:54:00:12:34:57 via eth1 to 192.0.2.255",
            "storagenode storage 52:54:00:12:34:56 192.0.2.61 via eth1 to 192.0.2.255",
            "worker-01 worker via eth1 to 192.0.2.255",
            "worker-02 worker via eth1 to 192.0.2.255",
        ]
    );
    assert_eq!(
        registry.notes(),
        [
            "`worker.example` is of no use as an address of numeric (hosts.yml:23): names are not looked up here",
            "hosts.yml:42: host left out: \"under_score\" is no node name: letters, digits, `-` and `.`, at most 253, each part beginning and ending with a letter or digit",
            "hosts.yml: no wol_mac for worker-01, worker-02: woken only once their agents have told one",
        ]
    );
}

#[test]
fn f6_what_is_wrong_with_an_inventory_in_yaml_is_told_with_its_line() {
    assert_eq!(
        wrong(
            "hosts.yml",
            r#"all:
  chidren:
    x:
  hosts:
    a:
      wol_mac: 52:54:00:00:00:01 eth0
      wol_mac: 52:54:00:00:00:01
    b:
      wol_mac: {a: b}
    c:
      wol_mac: "{{ macs.c }}"
    d: 5
    worker-[1:3]:
      wol_mac: 52:54:00:00:00:02
    n[1-3]:
    under_score:
      wol_mac: 52:54:00:00:00:03
  vars:
    wol_mac: 52:54:00:00:00:04
"#
        ),
        "\
hosts.yml:2:3: error: unknown `chidren` in the group `all`
  hint: did you mean `children`?
hosts.yml:6:16: error: `52:54:00:00:00:01 eth0` is no MAC address
  hint: write 52:54:00:00:00:01 alone: it is not known what the rest means
hosts.yml:7:7: error: `wol_mac` is written twice, first in hosts.yml:6
  hint: keep one of the two
hosts.yml:9:16: error: `wol_mac` has to be text
hosts.yml:11:16: error: `{{ macs.c }}` is no MAC address
  hint: templates are not filled in here: write the address itself
hosts.yml:12:8: error: a host has to be a map
  hint: its variables are `name: value`
hosts.yml:14:7: error: 3 hosts cannot share one wol_mac
  hint: write each host
hosts.yml:15:5: error: `1-3` is no range: write it as [01:20] or [a:f]
hosts.yml:16:5: error: \"under_score\" is no node name: letters, digits, `-` and `.`, at most 253, each part beginning and ending with a letter or digit
hosts.yml:19:14: error: the group `all` has a MAC address: a card is that of one host
  hint: give it to the host"
    );
    assert!(
        wrong("h.yml", "plugin: aws_ec2\nregions: []\n")
            .contains("h.yml:1:1: error: this is the configuration of an inventory plugin")
    );
    assert!(wrong("h.yml", "all:\n  hosts:\n    - a\n").contains("h.yml:3:5: error: `hosts:` has to be a map"));
    assert!(wrong("h.yml", "just text").contains("an inventory has to be a map"));
    let broken = wrong("h.yml", "all:\n  hosts:\n\ta: b\n");
    assert!(broken.starts_with("h.yml:3:"), "{broken}");
    let cycle = wrong("h.yml", "a: {children: {b: {children: {a: }}}}\n");
    assert!(cycle.contains("the group `a` is its own child"), "{cycle}");
}

#[test]
fn f6_anchors_are_followed_and_bounded() {
    let registry = registry(
        "hosts.yml",
        "all:\n  hosts:\n    a: &a\n      wol_interface: eth0\n      wol_mac: 52:54:00:00:00:01\n    b:\n      <<: *a\n      wol_mac: 52:54:00:00:00:02\n    c: {wol_interface: &e eth1}\n    d: {wol_interface: *e}\n",
    );
    assert_eq!(
        lines(&registry),
        [
            "a worker 52:54:00:00:00:01 via eth0",
            "b worker 52:54:00:00:00:02 via eth0",
            "c worker via eth1",
            "d worker via eth1",
        ]
    );
    let mut bomb = String::from("a0: &a0 {hosts: {x: }}\n");
    for level in 1..40 {
        let before = level - 1;
        bomb += &format!("a{level}: &a{level} {{children: {{p: *a{before}, q: *a{before}}}}}\n");
    }
    assert!(wrong("hosts.yml", &bomb).contains("not YAML"));
}

/// To YAML these are numbers; the last one is infinite.
#[test]
fn f6_a_mac_address_that_looks_like_a_number_is_taken_as_it_is_written() {
    let text = "all:\n  hosts:\n    a: {wol_mac: 021122334455}\n    b:\n      wol_mac: &m 0x11_2\n    c:\n      wol_mac: 1e9999999999 # far\n    d: {x: &n 525400000001}\n    e:\n      wol_mac: *n\n";
    assert!(wrong("h.yml", text).starts_with("h.yml:5:"));
    let registry = registry("h.yml", &text.replace("&m 0x11_2", "[0e1122334455]"));
    assert_eq!(
        lines(&registry),
        [
            "a worker 02:11:22:33:44:55",
            "b worker 0e:11:22:33:44:55",
            "c worker 1e:99:99:99:99:99",
            "d worker",
            "e worker 52:54:00:00:00:01",
        ]
    );
}

#[test]
fn an_inventory_in_ini_is_read() {
    let text = "\u{feff}; comment\r
lonely:2222 ansible_host=192.0.2.9   wol_mac=52:54:00:00:00:09#spare\r
\r
[masters] # the control plane
m1 ansible_host=192.0.2.1 wol_mac='52:54:00:00:00:01' ansible_ssh_common_args=\"-o ProxyJump=x -o A=b\"

[kube-node]
worker[01:03].example wol_interface=eth2
n-[a:b] 
s1 wol_mac=\"52:54:00:00:00:11\"
[storage]
s1
[cluster:children]
masters
kube-node # all of them
storage
[cluster:vars]
wol_interface = eth0 # of the server
wol_secure_on = '192.0.2.1'
[storage:vars]
wol_interface=\"eth1\"
";
    let registry = Registry::parse(text, Path::new("hosts")).unwrap();
    assert_eq!(
        lines(&registry),
        [
            "lonely worker 52:54:00:00:00:09 192.0.2.9",
            "m1 master 52:54:00:00:00:01 192.0.2.1 via eth0 password [c0, 00, 02, 01]",
            "n-a worker via eth0 password [c0, 00, 02, 01]",
            "n-b worker via eth0 password [c0, 00, 02, 01]",
            "s1 storage 52:54:00:00:00:11 via eth1 password [c0, 00, 02, 01]",
            "worker01.example worker via eth2 password [c0, 00, 02, 01]",
            "worker02.example worker via eth2 password [c0, 00, 02, 01]",
            "worker03.example worker via eth2 password [c0, 00, 02, 01]",
        ]
    );
}

#[test]
fn f6_what_is_wrong_with_an_inventory_in_ini_is_told_with_its_line() {
    assert_eq!(
        wrong(
            "hosts.ini",
            "\
[workers]
a wol_mac=52:54:00:00:00:01 eth0
b wol_mac = 52:54:00:00:00:02
c wol_mac=\"52:54:00:00:00:03 eth0\"
d wol_mac=52:54:00:00:00:04 ; comment
e wol_mac=\"52:54:00:00:00:05
f wol_mac=52:54:00:00:00:06
f wol_mac=52:54:00:00:00:07
g[1:2] wol_mac=52:54:00:00:00:08
h wol_mac=52:54:00:00:00:09 wol_mac=52:54:00:00:00:0a
[all:chidren]
workers
[everything:children]
wokers
[nobody:vars]
x=y
[workers:vars]
novalue
wol_mac=52:54:00:00:00:0b
[broken
[workers] x
"
        ),
        "\
hosts.ini:2:29: error: `eth0` is no `key=value`
  hint: a line is `host key=value key=\"two words\"`; a comment within it begins with #
hosts.ini:3:3: error: `wol_mac` is no `key=value`
  hint: a line is `host key=value key=\"two words\"`; a comment within it begins with #
hosts.ini:4:3: error: `52:54:00:00:00:03 eth0` is no MAC address
  hint: write 52:54:00:00:00:03 alone: it is not known what the rest means
hosts.ini:5:29: error: `;` is no `key=value`
  hint: a line is `host key=value key=\"two words\"`; a comment within it begins with #
hosts.ini:6:1: error: a quote is not closed
  hint: a line is `host key=value key=\"two words\"`; a comment within it begins with #
hosts.ini:8:3: error: wol_mac of f is something else in hosts.ini:7
  hint: correct one of the two, or take it out
hosts.ini:9:8: error: 2 hosts cannot share one wol_mac
  hint: write a line for each host
hosts.ini:10:29: error: wol_mac of h is something else in hosts.ini:10
  hint: correct one of the two, or take it out
hosts.ini:11:1: error: `[all:chidren]` is no section
  hint: did you mean [all:children]?
hosts.ini:14:1: error: there is no group `wokers`
  hint: did you mean `workers`?
hosts.ini:15:1: error: there is no group `nobody`
hosts.ini:18:1: error: `novalue` has no value
  hint: a line of [..:vars] is `key=value`
hosts.ini:19:1: error: the group `workers` has a MAC address: a card is that of one host
  hint: give it to the host
hosts.ini:20:1: error: `[broken` is no section
  hint: a section is [group], [group:children] or [group:vars]
hosts.ini:21:1: error: `[workers] x` is no section
  hint: a section is [group], [group:children] or [group:vars]"
    );
}

#[test]
fn f6_a_misspelt_variable_is_told() {
    let registry = registry(
        "h.ini",
        "a wol_mc=52:54:00:00:00:01 mac_address=52:54:00:00:00:01 wol_enabled=true\n",
    );
    assert_eq!(
        registry.notes(),
        [
            "`wol_mc` of a (h.ini:1) is not known: did you mean `wol_mac`?",
            "`mac_address` of a (h.ini:1) is not known: did you mean `wol_mac`?",
            "h.ini: no wol_mac for a: woken only once their agents have told one",
        ]
    );
}

#[test]
fn no_complaint_shows_what_may_be_a_secret() {
    for text in [
        "a ansible_password=x hunter2\n",
        "a wol_secure_on=hunter2\n",
        "ansible_password=hunter2\n",
        "a\n[all:vars]\nansible_password: hunter2\n",
        "a wol_secure_on=00:11:22:33:44:55 hunter2",
    ] {
        let complaints = wrong("h.ini", text);
        assert!(!complaints.contains("hunter2"), "{complaints}");
    }
    let complaints = wrong("h.yml", "all: {hosts: {a: {wol_secure_on: hunter2}}}\n");
    assert!(
        complaints.starts_with("h.yml:1:") && !complaints.contains("hunter2"),
        "{complaints}"
    );
}

#[test]
fn f6_groups_that_contradict_each_other_decide_nothing() {
    let text = "[a]\nh\n[b]\nh\n[a:vars]\nwol_interface=eth0\n[b:vars]\nwol_interface=eth1\n";
    assert_eq!(
        wrong("h.ini", text),
        "h.ini:8:1: error: h has another value from the group in h.ini:6\n  hint: give the host its own"
    );
    let nested = format!("{text}[a:children]\nb\n");
    assert_eq!(lines(&registry("h.ini", &nested)), ["h worker via eth1"]);
}

#[test]
fn f6_ranges_are_bounded() {
    for text in ["w[1:999999999]", "w[1:1000][1:1000]", "w[a:b][1:99999]"] {
        let complaints = wrong("h.ini", &format!("{text}\n"));
        assert!(complaints.contains("more than 100000"), "{complaints}");
    }
    assert_eq!(
        lines(&registry("h.ini", "w[1:6:2]")),
        ["w1 worker", "w3 worker", "w5 worker"]
    );
}
