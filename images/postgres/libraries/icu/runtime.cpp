// What ICU needs of a C++ runtime beside the type information in GCC's libsupc++: memory. There are no exceptions; ICU
// checks what its own operators return, and these here serve the few objects without them.
#include <stdlib.h>

#include <new>

void *operator new(std::size_t size) { return malloc(size != 0 ? size : 1); }
void *operator new[](std::size_t size) { return malloc(size != 0 ? size : 1); }
void operator delete(void *memory) noexcept { free(memory); }
void operator delete[](void *memory) noexcept { free(memory); }
void operator delete(void *memory, std::size_t) noexcept { free(memory); }
void operator delete[](void *memory, std::size_t) noexcept { free(memory); }

extern "C" void __cxa_pure_virtual() { abort(); }

// Named by libsupc++'s tables for unwinding, which nothing does.
extern "C" void __gxx_personality_v0() { abort(); }
