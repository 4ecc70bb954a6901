#!/usr/bin/perl
# Picks of ICU's data what PostgreSQL uses: a tenth of it.
#
# Usage: data.pl IN.dat OUT.dat. A .dat file is a header, whose first two bytes are its length; then the number of
# items; for each, sorted by name, the offsets of its name and of its content from the header's end; then the names;
# then the contents, each aligned to 16 bytes.
use strict;
use warnings;

my @wanted = (
    # Collations of all languages, and the rules of the root for those made by CREATE COLLATION (rules = …).
    qr{^coll/},
    # Names of locales: what exists, what is an alias, what is likely, keywords and their values.
    qr{^(res_index|root|pool|keyTypeData|langInfo|likelySubtags|metadata|numberingSystems|supplementalData|timezoneTypes)\.res$},
    # Their names in English, for the comments of the collations in pg_collation.
    qr{^en\.res$},
    qr{^(lang|region)/(res_index|root|pool|en)\.res$},
    # Words, for initcap.
    qr{^brkitr/[^/]*\.res$},
    qr{^brkitr/word.*\.brk$},
    # Encodings of databases that are neither UTF-8 nor ISO 8859-1 (PostgreSQL's pg_enc2icu_tbl).
    qr{^cnvalias\.icu$},
    qr{^ibm-(866|878|901|912|913|914|915|916|920|921|923|1089|1250|1251|1252|1253|1254|1255|1256|1257|1258|1168|813|5012|4909|9005)_.*\.cnv$},
    qr{^ibm-(5346|5347|5348|5349|5350|5351|5352|5353|5354|9447|9448|9449)_.*\.cnv$},
    qr{^iso-8859_1[0-9].*\.cnv$},
    qr{^(euc-jp-2007|euc-tw-2014|ibm-1383_P110-1999|ibm-970_P110_P110-2006_U2)\.cnv$},
    qr{^ibm-33722_P12A_P12A-2009_U2\.cnv$},
);

my ($in, $out) = @ARGV;
open my $file, '<:raw', $in or die "$in: $!\n";
my $data = do { local $/; <$file> };
close $file;

my $header = unpack 'v', $data;
my $count = unpack 'V', substr $data, $header, 4;
my @entries = unpack 'V*', substr $data, $header + 4, 8 * $count;
my (@items, %matched);
for my $item (0 .. $count - 1) {
    my ($name_at, $at) = @entries[2 * $item, 2 * $item + 1];
    my $end = $item + 1 < $count ? $entries[2 * $item + 3] : length($data) - $header;
    my $name = unpack 'Z*', substr $data, $header + $name_at, 256;
    my ($path) = $name =~ m{^icudt\d+l/(.*)$} or die "$in: an item has the name $name\n";
    my @patterns = grep { $path =~ $wanted[$_] } 0 .. $#wanted or next;
    $matched{$_} = 1 for @patterns;
    push @items, [$name, substr $data, $header + $at, $end - $at];
}
# A pattern without an item is a file that has another name by now.
for (0 .. $#wanted) { $matched{$_} or die "$in: nothing matches $wanted[$_]\n" }

my $names = join '', map { "$_->[0]\0" } @items;
my $names_at = 4 + 8 * @items;
my $at = ($names_at + length $names) + 15 & ~15;
my ($toc, $contents) = (pack('V', scalar @items), '');
for my $item (@items) {
    $toc .= pack 'VV', $names_at, $at + length $contents;
    $names_at += 1 + length $item->[0];
    $contents .= $item->[1] . "\0" x (-length($item->[1]) & 15);
}
my $body = $toc . $names;
$body .= "\0" x ($at - length $body);
open my $result, '>:raw', $out or die "$out: $!\n";
print $result substr($data, 0, $header), $body, $contents;
close $result or die "$out: $!\n";
printf "%d of %d items, %d of %d bytes\n", scalar @items, $count, -s $out, length $data;
