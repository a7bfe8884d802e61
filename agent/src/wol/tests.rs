//! A sysfs tree and drivers made for each test, and the real ioctl on loopback.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    error::Error as _,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::*;

const BURNT_IN: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const BROADCAST: u32 = 1 << 3;
const SECURE: u32 = 1 << 6;

/// What a driver does when it is told to set modes.
#[derive(Clone, Copy, Debug)]
enum Temper {
    /// Takes them, and makes its device a wakeup source as drivers do.
    Arms,
    /// Takes them and does nothing to the device.
    Accepts,
    /// Says yes and sets nothing.
    Forgets,
    Refuses(Errno),
    /// Does not tell its modes either.
    Silent(Errno),
}

struct Driver {
    temper: Temper,
    wol: WolInfo,
    permanent: Option<Mac>,
}

/// The ports of a host: `/sys` in a folder, and a driver each.
struct Host {
    sys: tempfile::TempDir,
    drivers: RefCell<BTreeMap<String, Driver>>,
}

impl Host {
    fn new() -> Self {
        let sys = tempfile::tempdir().unwrap();
        fs::create_dir_all(sys.path().join("class/net")).unwrap();
        Self {
            sys,
            drivers: RefCell::default(),
        }
    }

    fn sys(&self) -> &Path {
        self.sys.path()
    }

    fn file(&self, interface: &str, file: &str) -> PathBuf {
        self.sys().join("class/net").join(interface).join(file)
    }

    fn virtual_interface(&self, name: &str, lowers: &[&str]) {
        fs::create_dir(self.file(name, "")).unwrap();
        let index = fs::read_dir(self.sys().join("class/net")).unwrap().count();
        for (file, text) in [
            ("type", "1\n".to_owned()),
            ("ifindex", format!("{index}\n")),
            // A bond gives its own to its ports.
            ("address", "02:00:00:00:00:99\n".to_owned()),
            ("carrier", "1\n".to_owned()),
        ] {
            fs::write(self.file(name, file), text).unwrap();
        }
        for lower in lowers {
            symlink(format!("../{lower}"), self.file(name, &format!("lower_{lower}"))).unwrap();
        }
    }

    /// A port whose driver offers `g` and broadcast; `wakeup` is the text of its device's file, if there is one.
    fn port(&self, name: &str, temper: Temper, wakeup: Option<&str>) {
        self.virtual_interface(name, &[]);
        fs::create_dir_all(self.file(name, "device/power")).unwrap();
        if let Some(wakeup) = wakeup {
            fs::write(self.file(name, "device/power/wakeup"), wakeup).unwrap();
        }
        let driver = Driver {
            temper,
            wol: WolInfo {
                supported: Modes::MAGIC.0 | BROADCAST | SECURE,
                enabled: 0,
                password: [7; 6],
            },
            permanent: Some(BURNT_IN),
        };
        self.drivers.borrow_mut().insert(name.to_owned(), driver);
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Driver)) {
        change(self.drivers.borrow_mut().get_mut(name).unwrap());
    }

    fn ports(&self, wanted: &[&str]) -> Vec<Port> {
        ports_by(self, self.sys(), wanted).unwrap()
    }

    fn only(&self, wanted: &[&str]) -> Port {
        let [port] = self.ports(wanted).try_into().unwrap();
        port
    }

    fn arm(&self, name: &str) -> Result<Port, ArmError> {
        arm_by(self, self.sys(), &self.only(&[name]))
    }
}

impl Ethtool for Host {
    fn wol(&self, interface: &str) -> Result<WolInfo, Errno> {
        let drivers = self.drivers.borrow();
        let driver = drivers.get(interface).ok_or(Errno::ENODEV)?;
        match driver.temper {
            Temper::Silent(error) => Err(error),
            Temper::Arms | Temper::Accepts | Temper::Forgets | Temper::Refuses(_) => Ok(driver.wol),
        }
    }

    fn set_wol(&self, interface: &str, wol: &WolInfo) -> Result<(), Errno> {
        let mut drivers = self.drivers.borrow_mut();
        let driver = drivers.get_mut(interface).ok_or(Errno::ENODEV)?;
        assert_eq!(wol.password, driver.wol.password, "the password is kept");
        match driver.temper {
            Temper::Silent(error) | Temper::Refuses(error) => return Err(error),
            Temper::Forgets => return Ok(()),
            Temper::Accepts => {}
            Temper::Arms => fs::write(self.file(interface, "device/power/wakeup"), "enabled\n").unwrap(),
        }
        driver.wol.enabled = wol.enabled;
        Ok(())
    }

    fn permanent_address(&self, interface: &str) -> Result<Option<Mac>, Errno> {
        Ok(self.drivers.borrow().get(interface).ok_or(Errno::ENODEV)?.permanent)
    }
}

#[test]
fn s10_a_port_wakes_only_if_flag_wakeup_and_carrier_all_hold() {
    for (flag, wakeup, carrier) in (0..8).map(|bits| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0)) {
        let host = Host::new();
        host.port(
            "eth0",
            Temper::Arms,
            Some(if wakeup { "enabled\n" } else { "disabled\n" }),
        );
        host.change("eth0", |driver| {
            driver.wol.enabled = if flag { Modes::MAGIC.0 } else { 0 }
        });
        fs::write(host.file("eth0", "carrier"), if carrier { "1\n" } else { "0\n" }).unwrap();
        let port = host.only(&[]);
        assert_eq!(port.wakes(), flag && wakeup && carrier, "{port:?}");
        assert_eq!(
            port.objections().len(),
            [flag, wakeup, carrier].iter().filter(|holds| !**holds).count()
        );
        assert_eq!(port.would_wake_if_armed(), carrier, "{port:?}");
    }
}

#[test]
fn s10_an_honest_driver_is_armed_and_keeps_its_other_modes() {
    let host = Host::new();
    host.port("eth0", Temper::Arms, Some("disabled\n"));
    host.change("eth0", |driver| driver.wol.enabled = BROADCAST);
    let before = host.only(&[]);
    assert_eq!(before.enabled.to_string(), "b");
    let port = host.arm("eth0").unwrap();
    assert_eq!((port.enabled.to_string(), port.objections()), ("bg".into(), vec![]));
    assert_eq!(host.arm("eth0").unwrap(), port, "again changes nothing");
}

#[test]
fn s10_a_device_that_its_driver_leaves_alone_is_enabled_too() {
    let host = Host::new();
    host.port("eth0", Temper::Accepts, Some("disabled\n"));
    let port = host.arm("eth0").unwrap();
    assert_eq!((port.device_wakeup, port.wakes()), (DeviceWakeup::Enabled, true));
}

#[test]
fn s10_a_driver_that_accepts_g_without_wakeup_control_is_a_liar() {
    let host = Host::new();
    host.port("eth1", Temper::Accepts, None);
    assert!(!host.only(&[]).would_wake_if_armed());
    let port = host.arm("eth1").unwrap();
    assert_eq!(port.enabled, Modes::MAGIC);
    assert_eq!(port.objections(), [Objection::WakeupMissing { set: true }]);
    assert!(port.objections()[0].to_string().contains("lies"));
    assert!(!host.file("eth1", "device/power/wakeup").exists(), "nothing is made up");
    fs::write(host.file("eth1", "device/power/wakeup"), "\n").unwrap();
    assert_eq!(host.only(&[]), port, "an empty file is no control");
}

#[test]
fn s10_a_driver_that_says_yes_and_sets_nothing_is_not_believed() {
    let host = Host::new();
    host.port("eth1", Temper::Forgets, Some("enabled\n"));
    let port = host.arm("eth1").unwrap();
    assert_eq!(port.enabled.to_string(), "d");
    assert_eq!(
        port.objections(),
        [Objection::NotSet {
            interface: "eth1".into()
        }]
    );
    assert!(port.objections()[0].to_string().contains("`ethtool -s eth1 wol g`"));
}

#[test]
fn s10_a_flag_lost_on_resume_is_seen_and_armed_again() {
    let host = Host::new();
    host.port("eth0", Temper::Arms, Some("disabled\n"));
    assert!(host.arm("eth0").unwrap().wakes());
    host.change("eth0", |driver| driver.wol.enabled = 0);
    assert!(!host.only(&[]).wakes());
    assert!(host.arm("eth0").unwrap().wakes());
}

#[test]
fn s10_a_driver_that_refuses_is_named() {
    for error in [Errno::EOPNOTSUPP, Errno::EINVAL] {
        let host = Host::new();
        host.port("eth2", Temper::Refuses(error), Some("disabled\n"));
        let refused = host.arm("eth2").unwrap_err();
        assert!(refused.to_string().contains("eth2 refuses g"), "{refused}");
        assert!(matches!(refused, ArmError::Refused { source, .. } if source == error));
        assert!(refused.source().is_some());
        let wakeup = fs::read_to_string(host.file("eth2", "device/power/wakeup")).unwrap();
        assert_eq!(wakeup, "disabled\n", "nothing else is tried");
    }
}

#[test]
fn s10_without_the_capability_the_error_says_so() {
    let host = Host::new();
    host.port("eth0", Temper::Arms, Some("disabled\n"));
    let port = host.only(&[]);
    host.change("eth0", |driver| driver.temper = Temper::Refuses(Errno::EPERM));
    let refused = host.arm("eth0").unwrap_err();
    assert!(matches!(&refused, ArmError::NotPermitted { .. }) && refused.to_string().contains("CAP_NET_ADMIN"));
    host.change("eth0", |driver| driver.temper = Temper::Silent(Errno::EPERM));
    let refused = arm_by(&host, host.sys(), &port).unwrap_err();
    assert!(matches!(refused, ArmError::NotPermitted { .. }), "{refused}");
    let refused = ports_by(&host, host.sys(), &["eth0"]).unwrap_err();
    assert!(refused.to_string().contains("CAP_NET_ADMIN"), "{refused}");
}

#[test]
fn s10_a_driver_without_wol_or_without_an_answer_wakes_nobody() {
    let host = Host::new();
    host.port("eth0", Temper::Silent(Errno::EOPNOTSUPP), Some("enabled\n"));
    host.port("eth1", Temper::Silent(Errno::EIO), Some("enabled\n"));
    let [without, silent] = host.ports(&[]).try_into().unwrap();
    assert_eq!(without.objections(), [Objection::NotSupported]);
    assert_eq!(silent.objections(), [Objection::Unread { error: Errno::EIO }]);
    assert!(matches!(host.arm("eth0").unwrap_err(), ArmError::NotSupported { .. }));
    assert!(matches!(
        host.arm("eth1").unwrap_err(),
        ArmError::Driver { source: Errno::EIO, .. }
    ));
}

#[test]
fn s10_a_port_that_is_down_has_no_carrier() {
    let host = Host::new();
    host.port("eth0", Temper::Arms, Some("enabled\n"));
    // Reading it fails, as it does in the kernel for an interface that is down.
    fs::remove_file(host.file("eth0", "carrier")).unwrap();
    assert!(!host.only(&[]).carrier);
}

#[test]
fn s10_a_usb_adapter_wakes_through_its_device() {
    let host = Host::new();
    host.virtual_interface("usb0", &[]);
    let device = host.sys().join("devices/1-1");
    fs::create_dir_all(device.join("1-1:1.0/power")).unwrap();
    fs::create_dir(device.join("power")).unwrap();
    fs::write(device.join("power/wakeup"), "disabled\n").unwrap();
    symlink("../../../bus/usb", device.join("1-1:1.0/subsystem")).unwrap();
    symlink("../../../devices/1-1/1-1:1.0", host.file("usb0", "device")).unwrap();
    let usb = host.file("usb0", "");
    assert_eq!(device_wakeup(&usb).unwrap(), DeviceWakeup::Disabled);
    fs::write(wakeup_file(&usb).unwrap(), "enabled").unwrap();
    assert_eq!(device_wakeup(&usb).unwrap(), DeviceWakeup::Enabled);
    fs::remove_file(device.join("1-1:1.0/subsystem")).unwrap();
    assert_eq!(
        device_wakeup(&usb).unwrap(),
        DeviceWakeup::Missing,
        "no other bus is like that"
    );
}

#[test]
fn e6_bond_vlan_and_bridge_lead_to_the_physical_port_and_its_permanent_address() {
    let host = Host::new();
    host.port("eth0", Temper::Arms, Some("enabled\n"));
    host.port("eth1", Temper::Arms, Some("enabled\n"));
    host.virtual_interface("bond0", &["eth0", "eth1"]);
    host.virtual_interface("bond0.42", &["bond0"]);
    host.virtual_interface("br0", &["bond0.42", "veth7"]);
    host.virtual_interface("veth7", &[]);
    for top in ["bond0", "bond0.42", "br0"] {
        let ports = host.ports(&[top]);
        let found: Vec<_> = ports.iter().map(|port| port.interface.as_str()).collect();
        assert_eq!(found, ["eth0", "eth1"], "{top}");
        for port in ports {
            assert_eq!((port.mac, port.mac_source), (BURNT_IN, MacSource::Permanent));
            assert_eq!(port.behind.as_deref(), Some(top));
        }
    }
    let all: Vec<_> = host
        .ports(&[])
        .into_iter()
        .map(|port| (port.interface, port.behind))
        .collect();
    assert_eq!(all, [("eth0".into(), None), ("eth1".into(), None)]);
    assert_eq!(host.ports(&["br0", "eth0", "bond0"]).len(), 2, "each once");
}

#[test]
fn e6_interfaces_that_lie_on_each_other_or_on_nothing_have_no_port() {
    let host = Host::new();
    host.virtual_interface("a", &["b"]);
    host.virtual_interface("b", &["a"]);
    host.virtual_interface("lo", &[]);
    assert!(host.ports(&["a", "lo", "gone0"]).is_empty());
}

#[test]
fn e6_without_a_permanent_address_the_one_in_use_is_taken_and_said_so() {
    let host = Host::new();
    host.port("eth0", Temper::Arms, Some("enabled\n"));
    host.change("eth0", |driver| driver.permanent = None);
    let port = host.only(&[]);
    assert_eq!(
        (port.mac.to_string().as_str(), port.mac_source),
        ("02:00:00:00:00:99", MacSource::InUse)
    );
}

#[test]
fn what_is_no_ethernet_is_no_port() {
    let host = Host::new();
    host.port("ib0", Temper::Arms, Some("enabled\n"));
    fs::write(host.file("ib0", "type"), "32\n").unwrap();
    assert!(host.ports(&[]).is_empty());
}

#[test]
fn addresses_and_modes_are_written_as_ethtool_does() {
    assert_eq!(Modes(0b1111_1111).to_string(), "pumbagsf");
    assert_eq!(Modes::default().to_string(), "d");
    assert_eq!(Mac::parse("52:54:00:00:00:01"), Some(BURNT_IN));
    for wrong in [
        "",
        "52:54:00:00:00",
        "52:54:00:00:00:01:02",
        "00:00:00:00:00:00",
        "5x:54:00:00:00:01",
        "152:54:00:00:00:01",
    ] {
        assert_eq!(Mac::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn s10_the_kernel_says_that_loopback_has_no_wol() {
    let kernel = Kernel::open().unwrap();
    // Without the capability it says so before it looks.
    let expected = [Errno::EOPNOTSUPP, Errno::EPERM];
    let said = kernel.wol("lo").unwrap_err();
    assert!(expected.contains(&said), "{said}");
    assert_eq!(kernel.permanent_address("lo"), Ok(None));
    assert_eq!(kernel.permanent_address("no-such-iface0"), Err(Errno::ENODEV));
    assert_eq!(kernel.permanent_address("longer-than-any-name"), Err(Errno::ENODEV));
}
