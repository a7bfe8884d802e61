//! The wake server's unit in the guest, under the restrictions that systemd puts on it.

use serde_json::Value;

use crate::vm::{
    bed::{LAN, SOON, bed},
    installation::{Installation, Settings},
};

/// All trials of this file.
pub(crate) const TRIALS: [(&str, fn()); 1] = [("the_wake_servers_unit_is_sound_and_sends_frames", sends_frames)];

const UNIT: &str = "vmstation-wake-event.service";
const TOKEN: &str = "your-token";
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const CONFIGURATION: &str = "listen = \"0.0.0.0:9876\"\nregistry = [\"/etc/vmstation/wol-registry.conf\"]\n";

fn sends_frames() {
    let mut bed = bed();
    let agent = Installation::new(&mut bed, &Settings::default());
    let channel = &mut agent.bed.channel;
    for (file, mode, text) in [
        ("wake-token", "600", TOKEN),
        ("wake-secret", "600", SECRET),
        ("wake-server.toml", "644", CONFIGURATION),
        ("wol-registry.conf", "644", "worker-01|192.0.2.9|02:00:00:00:01:01|\n"),
    ] {
        channel.write(&format!("/etc/vmstation/{file}"), mode, text);
    }
    let verified = channel.run(&format!("systemd-analyze verify /etc/systemd/system/{UNIT}"), SOON);
    assert_eq!((verified.status, verified.text.as_str()), (0, ""));
    channel.ask(&format!(
        "ip link set {LAN} up; ip address replace 192.0.2.2/24 dev {LAN}"
    ));
    let started = channel.run(&format!("systemctl start {UNIT}"), SOON);
    let log = channel.ask(&format!("journalctl --no-pager --output cat --lines 30 --unit {UNIT}"));
    assert_eq!(started.status, 0, "{}\n{log}", started.text);

    let answer = channel.ask(&format!(
        "exec 3<>/dev/tcp/127.0.0.1/9876
         printf 'POST /wake/worker-01 HTTP/1.1\\r\\nHost: master\\r\\nX-Auth-Token: {TOKEN}\\r\\nConnection: close\\r\\n\\r\\n' >&3
         cat <&3"
    ));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    let wake: Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        (&wake["outcome"], &wake["transport"], &wake["interface"]),
        (&"sent".into(), &"raw".into(), &LAN.into()),
        "it may send frames: {wake:#}"
    );
    let who = channel.ask(&format!(
        "ps -o user= -p $(systemctl show --property MainPID --value {UNIT})"
    ));
    assert_ne!(who, "root");
}
