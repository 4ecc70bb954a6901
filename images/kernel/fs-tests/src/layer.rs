//! The VMM's file device behind the same ring.

use crate::device::Device;
use crate::rings::Ring;
use dormouse_vmm::fs::{FsDevice, FsOptions};
use dormouse_vmm::layer::template_hash;
use std::path::Path;
use vm_memory::VolatileSlice;

pub struct Layer {
    ring: Ring,
    device: FsDevice,
}

impl Layer {
    /// Opens (or makes) the layer over the template, as a VMM does at a cold start.
    pub fn open(layer: &Path, template: &Path) -> Self {
        let options = FsOptions::new(template_hash(template).unwrap());
        let device = FsDevice::open(layer, template, options).unwrap();
        Self { ring: Ring::new(dormouse_abi::queue::FS), device }
    }
}

impl Device for Layer {
    fn serve(&mut self) {
        while let Some(mut chain) = self.ring.next() {
            let room: usize = chain.room.iter().map(|part| part.1 as usize).sum();
            let mut answer = vec![0; room];
            let readable = [VolatileSlice::from(&mut chain.request[..])];
            let len = self.device.handle(&readable, &[VolatileSlice::from(&mut answer[..])]);
            self.ring.answer(&chain, &answer[..len]);
        }
    }
}
