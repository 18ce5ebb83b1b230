//! What processor a program is for, and the smallest program for each: the one that ends with exit code 0.

/// Length of an ELF header (the 64-bit form), of which the first 20 bytes tell the architecture.
const HEADER: usize = 64;
/// Where the smallest program is loaded.
const BASE: u64 = 0x40_0000;

/// An architecture, as ELF tells it (gABI, `e_machine`, and the processors' supplements).
struct Machine {
    /// Go's name, as platforms have it.
    name: &'static str,
    number: u16,
    is_64: bool,
    is_little: bool,
    flags: u32,
    /// `exit(0)`: instructions in the machine's byte order.
    exit: &'static [u8],
}

/// Those that the smallest program is known for.
const MACHINES: [Machine; 12] = [
    Machine {
        name: "amd64",
        number: 62,
        is_64: true,
        is_little: true,
        flags: 0,
        // xor edi, edi; mov eax, 60; syscall
        exit: &[0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05],
    },
    Machine {
        name: "386",
        number: 3,
        is_64: false,
        is_little: true,
        flags: 0,
        // xor ebx, ebx; mov eax, 1; int 0x80
        exit: &[0x31, 0xdb, 0xb8, 1, 0, 0, 0, 0xcd, 0x80],
    },
    Machine {
        name: "arm64",
        number: 183,
        is_64: true,
        is_little: true,
        flags: 0,
        // mov x8, 93; mov x0, 0; svc 0
        exit: &[0xa8, 0x0b, 0x80, 0xd2, 0x00, 0x00, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4],
    },
    Machine {
        name: "arm",
        number: 40,
        is_64: false,
        is_little: true,
        // The ABI's version 5.
        flags: 0x0500_0000,
        // mov r0, 0; mov r7, 1; svc 0
        exit: &[0x00, 0x00, 0xa0, 0xe3, 0x01, 0x70, 0xa0, 0xe3, 0x00, 0x00, 0x00, 0xef],
    },
    Machine {
        name: "riscv64",
        number: 243,
        is_64: true,
        is_little: true,
        flags: 0,
        // li a7, 93; li a0, 0; ecall
        exit: &[0x93, 0x08, 0xd0, 0x05, 0x13, 0x05, 0x00, 0x00, 0x73, 0x00, 0x00, 0x00],
    },
    Machine {
        name: "ppc64le",
        number: 21,
        is_64: true,
        is_little: true,
        // The ABI's version 2: the entry is code, not a descriptor of it.
        flags: 2,
        // li r0, 1; li r3, 0; sc
        exit: &[0x01, 0x00, 0x00, 0x38, 0x00, 0x00, 0x60, 0x38, 0x02, 0x00, 0x00, 0x44],
    },
    Machine {
        name: "ppc64",
        number: 21,
        is_64: true,
        is_little: false,
        flags: 2,
        exit: &[0x38, 0x00, 0x00, 0x01, 0x38, 0x60, 0x00, 0x00, 0x44, 0x00, 0x00, 0x02],
    },
    Machine {
        name: "s390x",
        number: 22,
        is_64: true,
        is_little: false,
        flags: 0,
        // lghi r2, 0; svc 1
        exit: &[0xa7, 0x29, 0x00, 0x00, 0x0a, 0x01],
    },
    Machine {
        name: "mips64",
        number: 8,
        is_64: true,
        is_little: false,
        // MIPS64.
        flags: 0x6000_0000,
        // li v0, 5058; li a0, 0; syscall
        exit: &[0x24, 0x02, 0x13, 0xc2, 0x24, 0x04, 0x00, 0x00, 0x00, 0x00, 0x00, 0x0c],
    },
    Machine {
        name: "mips64le",
        number: 8,
        is_64: true,
        is_little: true,
        flags: 0x6000_0000,
        exit: &[0xc2, 0x13, 0x02, 0x24, 0x00, 0x00, 0x04, 0x24, 0x0c, 0x00, 0x00, 0x00],
    },
    Machine {
        name: "loong64",
        number: 258,
        is_64: true,
        is_little: true,
        // Double-precision floating point, object ABI 1.
        flags: 0x43,
        // li.w a7, 93; li.w a0, 0; syscall 0
        exit: &[0x0b, 0x74, 0x81, 0x02, 0x04, 0x00, 0x80, 0x02, 0x00, 0x00, 0x2b, 0x00],
    },
    Machine {
        name: "mipsle",
        number: 8,
        is_64: false,
        is_little: true,
        // MIPS32, ABI O32.
        flags: 0x5000_1000,
        // li v0, 4001; li a0, 0; syscall
        exit: &[0xa1, 0x0f, 0x02, 0x24, 0x00, 0x00, 0x04, 0x24, 0x0c, 0x00, 0x00, 0x00],
    },
];

/// The architectures that [`smallest`] knows.
pub(crate) fn architectures() -> impl Iterator<Item = &'static str> {
    MACHINES.iter().map(|machine| machine.name)
}

/// The architecture in Go's name that a file is for, by its first bytes; `None` for what is no ELF file, a number for one that has no name here.
pub(crate) fn architecture(header: &[u8]) -> Option<String> {
    let [0x7f, b'E', b'L', b'F', class, data, ..] = *header else { return None };
    let bytes: [u8; 2] = header.get(18..20)?.try_into().ok()?;
    let is_little = data == 1;
    let number = if is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) };
    let is = |machine: &&Machine| {
        (machine.number, machine.is_64, machine.is_little) == (number, class == 2, is_little)
    };
    Some(
        MACHINES
            .iter()
            .find(is)
            .map_or_else(|| format!("machine {number}"), |machine| machine.name.to_owned()),
    )
}

/// The architecture that this program is for.
pub(crate) fn native() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// Whether this machine's processor runs an architecture's programs beside its own, where the kernel lets it.
pub(crate) fn is_compatible(architecture: &str) -> bool {
    matches!((native(), architecture), ("amd64", "386") | ("arm64", "arm"))
}

/// A static program for an architecture that does nothing and ends with exit code 0.
pub(crate) fn smallest(architecture: &str) -> Option<Vec<u8>> {
    let machine = MACHINES.iter().find(|machine| machine.name == architecture)?;
    let mut file = Writer { bytes: Vec::with_capacity(256), machine };
    let segment = if machine.is_64 { 56 } else { 32 };
    let header = if machine.is_64 { HEADER } else { 52 };
    let code = header + segment;
    file.bytes.extend([
        0x7f,
        b'E',
        b'L',
        b'F',
        1 + u8::from(machine.is_64),
        2 - u8::from(machine.is_little),
        1,
    ]);
    file.bytes.resize(16, 0);
    file.half(2); // an executable
    file.half(machine.number);
    file.word(1);
    file.address(BASE + code as u64); // where it begins
    file.address(header as u64); // segments
    file.address(0); // no sections
    file.word(machine.flags);
    for field in [header, segment, 1, 0, 0, 0] {
        file.half(field as u16); // all below 65
    }
    let length = (code + machine.exit.len()) as u64;
    file.word(1); // loaded,
    let readable_and_executable = 5;
    if machine.is_64 {
        file.word(readable_and_executable);
    }
    for field in [0, BASE, BASE, length, length] {
        file.address(field);
    }
    if !machine.is_64 {
        file.word(readable_and_executable);
    }
    file.address(0x1_0000); // aligned to the largest pages there are
    file.bytes.extend(machine.exit);
    Some(file.bytes)
}

/// Numbers in the machine's byte order.
struct Writer<'a> {
    bytes: Vec<u8>,
    machine: &'a Machine,
}

impl Writer<'_> {
    fn half(&mut self, value: u16) {
        self.bytes.extend(if self.machine.is_little { value.to_le_bytes() } else { value.to_be_bytes() });
    }

    fn word(&mut self, value: u32) {
        self.bytes.extend(if self.machine.is_little { value.to_le_bytes() } else { value.to_be_bytes() });
    }

    fn address(&mut self, value: u64) {
        if self.machine.is_64 {
            self.bytes.extend(if self.machine.is_little { value.to_le_bytes() } else { value.to_be_bytes() });
        } else {
            self.word(u32::try_from(value).expect("the program is small and loaded low"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_tell_what_they_are_for() {
        for name in architectures() {
            assert_eq!(architecture(&smallest(name).unwrap()).as_deref(), Some(name));
        }
        assert_eq!(architecture(b"#!/bin/sh\n"), None);
        assert_eq!(architecture(b"\x7fELF"), None);
        let mut strange = smallest("amd64").unwrap();
        strange[18] = 0x34;
        strange[19] = 0x12;
        assert_eq!(architecture(&strange).as_deref(), Some("machine 4660"));
        assert_eq!(smallest("pdp11"), None);
    }

    #[test]
    fn the_smallest_programs_end_well() {
        let directory = tempfile::tempdir().unwrap();
        for name in architectures() {
            let qemu = match name {
                "amd64" => "x86_64",
                "386" => "i386",
                "arm64" => "aarch64",
                "loong64" => "loongarch64",
                "mips64le" => "mips64el",
                "mipsle" => "mipsel",
                other => other,
            };
            let emulator = format!("/usr/bin/qemu-{qemu}-static");
            assert!(std::path::Path::new(&emulator).is_file(), "apt-get install qemu-user-static");
            let program = directory.path().join(name);
            std::fs::write(&program, smallest(name).unwrap()).unwrap();
            std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            let ended = std::process::Command::new(emulator).arg(&program).status().unwrap();
            assert!(ended.success(), "{name}: {ended}");
        }
    }
}
