//! The machine a figure was measured on.

use serde::Serialize;

#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub ram_mib: u64,
    pub kernel: String,
    /// Whether this machine is itself a virtual one, as the CPU says.
    pub virtual_machine: bool,
}

impl Machine {
    pub fn this() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let field = |name: &str| {
            cpu.lines()
                .find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))
                .map(str::trim)
        };
        let memory = read("/proc/meminfo");
        let total_kib = memory.lines().find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        });
        Self {
            cpu: field("model name").unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            ram_mib: total_kib.unwrap_or(0) / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            virtual_machine: field("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            cpu,
            cores,
            ram_mib,
            kernel,
            virtual_machine,
        } = self;
        let virtual_machine = if *virtual_machine {
            ", itself a virtual machine"
        } else {
            ""
        };
        write!(
            out,
            "{cpu}, {cores} cores, {ram_mib} MiB RAM, Linux {kernel}{virtual_machine}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_this_machine() {
        let machine = Machine::this();
        assert!(machine.ram_mib > 0 && machine.cores > 0 && !machine.kernel.is_empty());
    }
}
