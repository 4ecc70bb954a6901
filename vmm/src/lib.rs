//! dormouse-vmm
