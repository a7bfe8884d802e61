//! Wake-on-LAN requests to the running kernel. Its virtual drivers have none, and say so.

use std::path::Path;

use nix::{errno::Errno, net::if_::if_nametoindex};
use vmstation_agent::wol::{self, ArmError, DeviceWakeup, Mac, MacSource, Modes, Port};

use super::netns::{ip, rtnetlink, runtime, veth};

pub(super) fn virtual_interfaces_have_no_wol_and_lead_to_no_port() {
    runtime().block_on(async { veth(&rtnetlink(), "vms0", "vms1").await });
    ip("link add vmsbr0 type bridge");
    ip("link set vms0 master vmsbr0");
    let sys = Path::new("/sys");
    for wanted in [&[][..], &["vmsbr0"], &["vms0", "lo", "vmsgone0"]] {
        assert_eq!(wol::ports(sys, wanted).unwrap(), [], "{wanted:?}");
    }
    // As if it had a parent on a bus: the kernel is asked all the same.
    let mut port = Port {
        interface: "vms0".into(),
        ifindex: if_nametoindex("vms0").unwrap(),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        mac_source: MacSource::InUse,
        behind: Some("vmsbr0".into()),
        supported: Modes::MAGIC,
        enabled: Modes::default(),
        unread: None,
        device_wakeup: DeviceWakeup::Enabled,
        carrier: true,
    };
    let refused = wol::arm(sys, &port).unwrap_err();
    assert!(
        matches!(&refused, ArmError::NotSupported { supported, .. } if *supported == Modes::default()),
        "{refused:?}"
    );
    port.interface = "vmsgone0".into();
    let refused = wol::arm(sys, &port).unwrap_err();
    assert!(
        matches!(
            refused,
            ArmError::Driver {
                source: Errno::ENODEV,
                ..
            }
        ),
        "{refused:?}"
    );
}
