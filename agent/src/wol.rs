//! Wake-on-LAN of this host's own ports: which of them a magic packet can wake it through, and arming them.
//!
//! A port wakes the host only if three things hold together: its driver has the flag `g` (magic packet) set, its device is a wakeup
//! source (`device/power/wakeup`), and it has a carrier. Drivers accept `g` and do nothing, or lose it over a suspend; so nothing is
//! believed that was not read back. The kernel and sysfs own all state: a [`Port`] is what was seen at one moment. Never looks at or
//! changes an interface that is not physical, never clears a flag and never sends a packet.

mod ethtool;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::{Path, PathBuf},
};

use nix::errno::Errno;
use thiserror::Error;

use self::ethtool::{Ethtool, Kernel, WolInfo};
use crate::interfaces;

/// `ARPHRD_ETHER` (linux/if_arp.h): magic packets are Ethernet frames, and other links have no address that fits into one.
const ETHERNET: &str = "1";

/// A physical port, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Interface name.
    pub interface: String,
    /// Interface number.
    pub ifindex: u32,
    /// What a magic packet for it must carry.
    pub mac: Mac,
    /// Where that address is from.
    pub mac_source: MacSource,
    /// The bond, bridge or VLAN that was asked for and lies on it.
    pub behind: Option<String>,
    /// What the driver offers.
    pub supported: Modes,
    /// What is set.
    pub enabled: Modes,
    /// Why the driver did not tell its modes, if it did not; both sets are empty then.
    pub unread: Option<Errno>,
    /// Whether its device may wake the host.
    pub device_wakeup: DeviceWakeup,
    /// Whether it is up and has a link.
    pub carrier: bool,
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// Where a port's address is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacSource {
    /// Burnt in (`ETHTOOL_GPERMADDR`): what the sleeping card listens for.
    Permanent,
    /// The driver knows no permanent one: the address in use, which a bond may have changed.
    InUse,
}

/// A set of Wake-on-LAN modes: the bits `WAKE_*` of linux/ethtool.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes(pub u32);

/// `device/power/wakeup` (Documentation/ABI/testing/sysfs-devices-power).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceWakeup {
    /// It may wake the host.
    Enabled,
    /// It could, and may not.
    Disabled,
    /// It cannot signal a wakeup, whatever its driver says.
    Missing,
}

/// Why a port cannot wake the host. `Display` says it in words, with the fix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Objection {
    /// The driver did not tell its modes.
    Unread {
        /// What it said instead.
        error: Errno,
    },
    /// The driver has no mode `g`.
    NotSupported,
    /// The driver offers `g` and it is not set.
    NotSet {
        /// The interface, for the fix.
        interface: String,
    },
    /// The device is no wakeup source though it could be.
    WakeupDisabled {
        /// The interface, for the fix.
        interface: String,
    },
    /// The device cannot be a wakeup source.
    WakeupMissing {
        /// The flag is set and means nothing.
        set: bool,
    },
    /// Down, or no link.
    NoCarrier {
        /// The interface, for the fix.
        interface: String,
    },
}

/// Why the ports are not known.
#[derive(Debug, Error)]
pub enum PortsError {
    /// The kernel tells Wake-on-LAN settings only with that capability (net/ethtool/ioctl.c).
    #[error("cannot read the Wake-on-LAN settings of {interface}: needs CAP_NET_ADMIN; run as root")]
    NotPermitted {
        /// The first interface it was tried on.
        interface: String,
    },
    /// sysfs, or no socket to ask with.
    #[error("cannot look at the network ports of this host")]
    Io(#[from] io::Error),
}

/// Why a port could not be armed.
#[derive(Debug, Error)]
pub enum ArmError {
    /// Changing Wake-on-LAN needs that capability.
    #[error("cannot set Wake-on-LAN of {interface}: needs CAP_NET_ADMIN; run as root")]
    NotPermitted {
        /// The interface.
        interface: String,
    },
    /// The driver offers no `g`.
    #[error("{interface} cannot be woken by a magic packet: its driver offers {supported}, not g; use another port")]
    NotSupported {
        /// The interface.
        interface: String,
        /// What it offers.
        supported: Modes,
    },
    /// The driver offers `g` and then does not take it.
    #[error(
        "{interface} refuses g: its driver offers it and does not set it; look for it in the firmware setup, or use another port"
    )]
    Refused {
        /// The interface.
        interface: String,
        /// What the driver said.
        source: Errno,
    },
    /// The driver did not answer as it should.
    #[error("cannot talk to the driver of {interface}")]
    Driver {
        /// The interface.
        interface: String,
        /// What it said.
        source: Errno,
    },
    /// The device's wakeup could not be switched on.
    #[error("cannot write {}: is /sys mounted read-only for this service?", path.display())]
    Wakeup {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The port could not be read back.
    #[error("cannot read {interface} back after arming it")]
    ReadBack {
        /// The interface.
        interface: String,
        /// Why.
        source: io::Error,
    },
}

/// The physical Ethernet ports behind `wanted`, in the order of their names: a bond, bridge or VLAN leads down to its own (fault E6);
/// without `wanted`, every one of this host. An interface that does not exist has none. `sys` is `/sys`.
///
/// Blocks for as long as the drivers take to answer.
///
/// # Errors
/// Not permitted, or sysfs cannot be read. A driver that does not answer is [`Port::unread`].
pub fn ports(sys: &Path, wanted: &[impl AsRef<str>]) -> Result<Vec<Port>, PortsError> {
    ports_by(&Kernel::open()?, sys, wanted)
}

/// The names of those ports, each with the interface of `wanted` that lies on it. Needs no capability.
///
/// # Errors
/// sysfs cannot be read.
pub fn names(sys: &Path, wanted: &[impl AsRef<str>]) -> io::Result<BTreeMap<String, Option<String>>> {
    let folder = sys.join("class/net");
    let mut found = BTreeMap::new();
    if wanted.is_empty() {
        found.extend(interfaces::physical(&folder)?.into_iter().map(|name| (name, None)));
    }
    for top in wanted {
        let top = top.as_ref();
        let (mut seen, mut next) = (BTreeSet::new(), vec![top.to_owned()]);
        while let Some(name) = next.pop() {
            if interfaces::is_physical(&folder, &name) {
                let behind = (name != top).then(|| top.to_owned());
                found.entry(name).or_insert(behind);
            } else if seen.insert(name.clone()) {
                next.extend(interfaces::directly_below(&folder, &name)?);
            }
        }
    }
    Ok(found)
}

/// Sets `g` beside the modes that are set already, makes the device a wakeup source, and returns the port as it then is: what a driver
/// only pretended is in its [`Port::objections`]. `sys` is `/sys`.
///
/// Blocks for as long as the driver takes to answer.
///
/// # Errors
/// What could not be done; the port may then be half armed, which wakes nothing by itself.
pub fn arm(sys: &Path, port: &Port) -> Result<Port, ArmError> {
    let kernel = Kernel::open().map_err(|error| ArmError::Driver {
        interface: port.interface.clone(),
        source: Errno::try_from(error).unwrap_or(Errno::UnknownErrno),
    })?;
    arm_by(&kernel, sys, port)
}

/// Arms every port behind `wanted` that can be and is not, and returns them all as they then are. What cannot be armed is in the
/// [`Port::objections`], and in the log.
///
/// Blocks for as long as the drivers take to answer.
///
/// # Errors
/// As [`ports`].
pub fn arm_all(sys: &Path, wanted: &[impl AsRef<str>]) -> Result<Vec<Port>, PortsError> {
    let ports = ports(sys, wanted)?.into_iter().map(|port| {
        if port.wakes() || port.supported == Modes::default() {
            return port;
        }
        match arm(sys, &port) {
            Ok(armed) => {
                if armed != port {
                    tracing::info!(
                        interface = armed.interface,
                        wakes = armed.wakes(),
                        "Wake-on-LAN is armed"
                    );
                }
                armed
            }
            Err(error) => {
                tracing::debug!(
                    interface = port.interface,
                    error = &error as &dyn std::error::Error,
                    "Wake-on-LAN cannot be armed"
                );
                port
            }
        }
    });
    Ok(ports.collect())
}

fn ports_by(ethtool: &impl Ethtool, sys: &Path, wanted: &[impl AsRef<str>]) -> Result<Vec<Port>, PortsError> {
    let mut ports = Vec::new();
    for (interface, behind) in names(sys, wanted)? {
        match read(ethtool, sys, &interface, behind) {
            Ok(port) => ports.extend(port),
            // It went away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    match ports.iter().find(|port| port.unread == Some(Errno::EPERM)) {
        Some(Port { interface, .. }) => Err(PortsError::NotPermitted {
            interface: interface.clone(),
        }),
        None => Ok(ports),
    }
}

fn arm_by(ethtool: &impl Ethtool, sys: &Path, port: &Port) -> Result<Port, ArmError> {
    let interface = || port.interface.clone();
    let driver = |source| match source {
        Errno::EPERM => ArmError::NotPermitted { interface: interface() },
        source => ArmError::Driver {
            interface: interface(),
            source,
        },
    };
    let wol = match ethtool.wol(&port.interface) {
        Ok(wol) => wol,
        Err(Errno::EOPNOTSUPP) => WolInfo::default(),
        Err(error) => return Err(driver(error)),
    };
    if !Modes(wol.supported).contains(Modes::MAGIC) {
        return Err(ArmError::NotSupported {
            interface: interface(),
            supported: Modes(wol.supported),
        });
    }
    let wanted = WolInfo {
        enabled: wol.enabled | Modes::MAGIC.0,
        ..wol
    };
    ethtool.set_wol(&port.interface, &wanted).map_err(|error| match error {
        Errno::EOPNOTSUPP | Errno::EINVAL => ArmError::Refused {
            interface: interface(),
            source: error,
        },
        error => driver(error),
    })?;
    let folder = sys.join("class/net").join(&port.interface);
    let read_back = |source| ArmError::ReadBack {
        interface: interface(),
        source,
    };
    // Of a device without one the kernel takes no setting; its absence is read back.
    if let Some(path) = wakeup_file(&folder)
        && device_wakeup(&folder).map_err(read_back)? == DeviceWakeup::Disabled
    {
        fs::write(&path, "enabled").map_err(|source| ArmError::Wakeup { path, source })?;
    }
    read(ethtool, sys, &port.interface, port.behind.clone())
        .map_err(read_back)?
        .ok_or_else(|| read_back(io::Error::other("it is no Ethernet port any more")))
}

/// `None` for one that is not Ethernet.
fn read(ethtool: &impl Ethtool, sys: &Path, interface: &str, behind: Option<String>) -> io::Result<Option<Port>> {
    let folder = sys.join("class/net").join(interface);
    let text = |file: &str| fs::read_to_string(folder.join(file)).map(|text| text.trim().to_owned());
    if text("type")? != ETHERNET {
        return Ok(None);
    }
    let strange = |file: &str, text: &str| io::Error::other(format!("{}: {text:?}", folder.join(file).display()));
    let ifindex = text("ifindex")?;
    let ifindex = ifindex.parse().map_err(|_| strange("ifindex", &ifindex))?;
    let (mac, mac_source) = match ethtool.permanent_address(interface) {
        Ok(Some(mac)) => (mac, MacSource::Permanent),
        Ok(None) | Err(_) => {
            let address = text("address")?;
            let mac = Mac::parse(&address).ok_or_else(|| strange("address", &address))?;
            (mac, MacSource::InUse)
        }
    };
    let (wol, unread) = match ethtool.wol(interface) {
        Ok(wol) => (wol, None),
        Err(Errno::EOPNOTSUPP) => (WolInfo::default(), None),
        Err(Errno::ENODEV) => return Ok(None),
        Err(error) => (WolInfo::default(), Some(error)),
    };
    Ok(Some(Port {
        interface: interface.to_owned(),
        ifindex,
        mac,
        mac_source,
        behind,
        supported: Modes(wol.supported),
        enabled: Modes(wol.enabled),
        unread,
        device_wakeup: device_wakeup(&folder)?,
        // Of an interface that is down the kernel says EINVAL.
        carrier: text("carrier").is_ok_and(|carrier| carrier == "1"),
    }))
}

fn device_wakeup(interface: &Path) -> io::Result<DeviceWakeup> {
    let Some(path) = wakeup_file(interface) else {
        return Ok(DeviceWakeup::Missing);
    };
    match fs::read_to_string(&path)?.trim() {
        "enabled" => Ok(DeviceWakeup::Enabled),
        "disabled" => Ok(DeviceWakeup::Disabled),
        // What the kernel writes for a device that cannot wake (drivers/base/power/sysfs.c).
        "" => Ok(DeviceWakeup::Missing),
        other => Err(io::Error::other(format!("{}: {other:?}", path.display()))),
    }
}

/// The wakeup switch of an interface's device; of USB, that of the device whose interface is the parent (drivers/net/usb/usbnet.c).
fn wakeup_file(interface: &Path) -> Option<PathBuf> {
    let device = interface.join("device");
    let own = device.join("power/wakeup");
    let is_usb = || fs::read_link(device.join("subsystem")).is_ok_and(|bus| bus.ends_with("usb"));
    if own.exists() {
        return Some(own);
    }
    let of_usb = device.join("../power/wakeup");
    (is_usb() && of_usb.exists()).then_some(of_usb)
}

impl Port {
    /// Why it cannot wake the host; empty: it can (fault S10).
    pub fn objections(&self) -> Vec<Objection> {
        let interface = || self.interface.clone();
        let is_set = self.enabled.contains(Modes::MAGIC);
        let flag = match self.unread {
            Some(error) => Some(Objection::Unread { error }),
            None if is_set => None,
            None if self.supported.contains(Modes::MAGIC) => Some(Objection::NotSet { interface: interface() }),
            None => Some(Objection::NotSupported),
        };
        let device = match self.device_wakeup {
            DeviceWakeup::Enabled => None,
            DeviceWakeup::Disabled => Some(Objection::WakeupDisabled { interface: interface() }),
            DeviceWakeup::Missing => Some(Objection::WakeupMissing { set: is_set }),
        };
        let carrier = (!self.carrier).then(|| Objection::NoCarrier { interface: interface() });
        flag.into_iter().chain(device).chain(carrier).collect()
    }

    /// Whether a magic packet wakes the host through it.
    pub fn wakes(&self) -> bool {
        self.objections().is_empty()
    }

    /// Whether it would, after [`arm`] has done what it can and the driver was honest.
    pub fn would_wake_if_armed(&self) -> bool {
        self.objections().iter().all(|objection| match objection {
            Objection::NotSet { .. } | Objection::WakeupDisabled { .. } => true,
            Objection::Unread { .. }
            | Objection::NotSupported
            | Objection::WakeupMissing { .. }
            | Objection::NoCarrier { .. } => false,
        })
    }
}

impl Modes {
    /// Magic packet, `g`.
    pub const MAGIC: Self = Self(1 << 5);

    /// ethtool(8)'s letters, by bit.
    const LETTERS: &str = "pumbagsf";

    /// Whether all of `other` are among these.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl Mac {
    /// Six bytes in hexadecimal with colons between, as sysfs writes them; not all of them zero.
    fn parse(text: &str) -> Option<Self> {
        let bytes: Option<Vec<_>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        Self::known(bytes?.try_into().ok()?)
    }

    /// Unless all bytes are zero: drivers say so of an address they do not know.
    fn known(bytes: [u8; 6]) -> Option<Self> {
        (bytes != [0; 6]).then_some(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Display for Modes {
    /// ethtool(8)'s letters; `d` for none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_set = |bit: usize| self.0 & (1 << bit) != 0;
        let letters = Self::LETTERS.char_indices().filter(|&(bit, _)| is_set(bit));
        match letters.map(|(_, letter)| letter).collect::<String>().as_str() {
            "" => f.write_str("d"),
            letters => f.write_str(letters),
        }
    }
}

impl Objection {
    /// What is wrong, in words.
    pub fn cause(&self) -> String {
        match self {
            Self::Unread { error } => format!("its driver does not tell its Wake-on-LAN modes: {}", error.desc()),
            Self::NotSupported => "its driver does not offer g (magic packet)".into(),
            Self::NotSet { .. } => "g (magic packet) is not set".into(),
            Self::WakeupDisabled { .. } => "device wakeup is disabled".into(),
            Self::WakeupMissing { set: true } => {
                "its driver lies: it accepts g, but the device has no wakeup control".into()
            }
            Self::WakeupMissing { set: false } => "the device has no wakeup control".into(),
            Self::NoCarrier { .. } => "no carrier".into(),
        }
    }

    /// What would help.
    pub fn fix(&self) -> String {
        match self {
            Self::Unread { .. } | Self::NotSupported | Self::WakeupMissing { set: true } => {
                "use another port or card".into()
            }
            Self::NotSet { interface } => format!("`ethtool -s {interface} wol g`"),
            Self::WakeupDisabled { interface } => {
                format!("`echo enabled > /sys/class/net/{interface}/device/power/wakeup`")
            }
            Self::WakeupMissing { set: false } => {
                "look for Wake-on-LAN in the firmware setup, or use another port or card".into()
            }
            Self::NoCarrier { interface } => format!("plug the cable in, `ip link set {interface} up`"),
        }
    }
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cause(), self.fix())
    }
}
