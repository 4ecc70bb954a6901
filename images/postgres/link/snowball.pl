#!/usr/bin/perl
# Makes the stemmers' tables constant: turns each pointer in a table of `struct among` (section a_N of a relocatable
# object) into the distance from where it stands to what it points to. A null pointer stays 0.
#
# Usage: snowball.pl OBJECT, changed in place.
use strict;
use warnings;

use constant { SHT_RELA => 4, SHF_WRITE => 1, R_X86_64_64 => 1, R_X86_64_PC64 => 24 };

my ($path) = @ARGV;
open my $file, '+<:raw', $path or die "$path: $!\n";
my $elf = do { local $/; <$file> };
substr($elf, 0, 5) eq "\x7fELF\x02" or die "$path: not a 64-bit ELF object\n";
my ($headers_at) = unpack 'Q<', substr $elf, 0x28, 8;
my ($header_len, $count, $names_index) = unpack 'v3', substr $elf, 0x3a, 6;
my @headers = map { [unpack 'V2 Q<4 V2 Q<2', substr $elf, $headers_at + $_ * $header_len, 64] } 0 .. $count - 1;
my $name_of = sub { unpack 'Z*', substr $elf, $headers[$names_index][4] + $_[0][0], 64 };

my $changed = 0;
for my $header (@headers) {
    my (undef, $type, undef, undef, $at, $len, undef, $target, undef, $entry_len) = @$header;
    $type == SHT_RELA && $name_of->($headers[$target]) =~ /^\.data\.rel\.ro\.local\.a_\d+$/ or next;
    for (my $entry = $at; $entry < $at + $len; $entry += $entry_len) {
        my $kind = unpack 'V', substr $elf, $entry + 8, 4;
        $kind == R_X86_64_64 or die "$path: relocation of type $kind in a table\n";
        substr $elf, $entry + 8, 4, pack 'V', R_X86_64_PC64;
        $changed++;
    }
    my $flags_at = $headers_at + $target * $header_len + 8;
    substr $elf, $flags_at, 8, pack 'Q<', $headers[$target][2] & ~SHF_WRITE;
}
$changed > 0 or die "$path: no tables found\n";
seek $file, 0, 0;
print $file $elf;
close $file or die "$path: $!\n";
print "$path: $changed pointers made distances\n";
