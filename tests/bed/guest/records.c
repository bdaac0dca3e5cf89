/* The guest's half of the oracle: numbered, checksummed records on one or more disks (or files), in order.
 *
 *   records write SPAN PAUSE_US PATH...    check what is there, print the verdict, go on at the smallest newest + 1
 *   records check SPAN PATH...             check only; exit status 0 if all is right
 *
 * For n = 1, 2, ...: on each path in turn, record n goes to its slot and then the header (slot 0) says n; when all
 * paths have it, `ACK n` is printed. All writes are O_DIRECT|O_DSYNC, so a printed ACK is on the disk.
 * SPAN is how many bytes of each path are used; 0 is all of a disk. tests/bed/records.py is the host's half and has
 * the layout in words. Little-endian machines only.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK 4096
#define WORDS 8                                /* of a line; a block is its line 64 times over */
#define RECORD_MAGIC 0x44524f4345524b52ULL     /* "RKRECORD" */
#define HEADER_MAGIC 0x5245444145484b52ULL     /* "RKHEADER" */
#define STRIDE 2654435761ULL                   /* a prime above any slot count: the slots come in a scattered order */
#define MAX_DISKS 8

struct disk {
	const char *path;
	int fd;
	uint64_t number, slots, newest;
};

static unsigned char *block;

static void die(const char *what, const char *path)
{
	printf("RECORDS ERROR %s %s: %s\n", what, path, strerror(errno));
	exit(2);
}

static uint64_t mix(uint64_t x)
{
	x += 0x9E3779B97F4A7C15ULL;
	x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
	x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
	return x ^ (x >> 31);
}

static void fill(uint64_t *line)
{
	uint64_t sum = 0;
	for (int i = 0; i < WORDS - 1; i++)
		sum = mix(sum ^ line[i]);
	line[WORDS - 1] = sum;
	for (int i = 0; i < BLOCK; i += WORDS * 8)
		memcpy(block + i, line, WORDS * 8);
}

static void make_record(const struct disk *disk, uint64_t n)
{
	uint64_t line[WORDS] = { RECORD_MAGIC, n, disk->number };
	for (int i = 3; i < WORDS - 1; i++)
		line[i] = mix(n * 8 + i + (disk->number << 56));
	fill(line);
}

static void make_header(const struct disk *disk, uint64_t n)
{
	uint64_t line[WORDS] = { HEADER_MAGIC, n, disk->number, disk->slots };
	fill(line);
}

static uint64_t slot_of(const struct disk *disk, uint64_t n)
{
	return 1 + (n % disk->slots) * (STRIDE % disk->slots) % disk->slots;
}

static void put(const struct disk *disk, uint64_t slot)
{
	if (pwrite(disk->fd, block, BLOCK, slot * BLOCK) != BLOCK)
		die("writing", disk->path);
}

static void open_disk(struct disk *disk, uint64_t span, int writing)
{
	struct stat info;
	uint64_t size;
	int flags = writing ? O_RDWR | O_CREAT | O_DIRECT | O_DSYNC : O_RDONLY;
	disk->fd = open(disk->path, flags, 0600);
	if (disk->fd < 0 && errno == EINVAL) /* a file system without O_DIRECT */
		disk->fd = open(disk->path, flags & ~O_DIRECT, 0600);
	if (disk->fd < 0 || fstat(disk->fd, &info) < 0)
		die("opening", disk->path);
	if (S_ISBLK(info.st_mode)) {
		if (ioctl(disk->fd, BLKGETSIZE64, &size) < 0)
			die("measuring", disk->path);
	} else {
		if (writing && info.st_size == 0 && ftruncate(disk->fd, span) < 0)
			die("growing", disk->path);
		size = info.st_size ? (uint64_t)info.st_size : span;
	}
	if (span && span < size)
		size = span;
	if (size < 2 * BLOCK) {
		errno = ENOSPC;
		die("using", disk->path);
	}
	disk->slots = size / BLOCK - 1;
}

static int wrong(const struct disk *disk, uint64_t slot, uint64_t n, const char *what)
{
	printf("RECORDS WRONG %s record %llu in slot %llu: %s\n", disk->path, (unsigned long long)n,
	       (unsigned long long)slot, what);
	return 1;
}

/* Is `found` a whole record of this disk, whichever number it has? */
static int is_record(const struct disk *disk, const unsigned char *found)
{
	uint64_t line[WORDS];
	memcpy(line, found, sizeof line);
	if (line[0] != RECORD_MAGIC || line[2] != disk->number)
		return 0;
	make_record(disk, line[1]);
	return memcmp(block, found, BLOCK) == 0;
}

/* Sets disk->newest. Returns the number of wrong records. */
static int check(struct disk *disk)
{
	unsigned char found[BLOCK];
	uint64_t line[WORDS], *expected, first, n, slot;
	int bad = 0;
	ssize_t got = pread(disk->fd, found, BLOCK, 0);
	if (got != 0 && got != BLOCK) /* 0: a new file */
		die("reading", disk->path);
	memcpy(line, found, sizeof line);
	if (got == 0 || line[0] != HEADER_MAGIC) {
		disk->newest = 0;
		return 0;
	}
	disk->newest = line[1];
	disk->slots = line[3];
	make_header(disk, disk->newest);
	if (memcmp(block, found, BLOCK) != 0)
		return wrong(disk, 0, disk->newest, "damaged header");
	expected = calloc(disk->slots + 1, sizeof *expected);
	if (!expected)
		die("remembering", disk->path);
	first = disk->newest > disk->slots ? disk->newest - disk->slots + 1 : 1;
	for (n = first; n <= disk->newest; n++)
		expected[slot_of(disk, n)] = n;
	posix_fadvise(disk->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
	for (slot = 1; slot <= disk->slots; slot++) {
		if (pread(disk->fd, found, BLOCK, slot * BLOCK) != BLOCK)
			die("reading", disk->path);
		memcpy(line, found, sizeof line);
		if (line[0] == RECORD_MAGIC && line[1] > disk->newest && is_record(disk, found)) {
			if (line[1] > disk->newest + 1)
				bad += wrong(disk, slot, line[1], "newer than the header");
			continue;
		}
		if (!expected[slot])
			continue;
		make_record(disk, expected[slot]);
		if (memcmp(block, found, BLOCK) != 0)
			bad += wrong(disk, slot, expected[slot], is_record(disk, found) ? "an older one" : "damaged or lost");
	}
	free(expected);
	return bad;
}

static int verdict(struct disk *disks, int count)
{
	int bad = 0;
	for (int i = 0; i < count; i++)
		bad += check(&disks[i]);
	if (disks[0].newest < disks[count - 1].newest || disks[0].newest > disks[count - 1].newest + 1) {
		printf("RECORDS WRONG the disks are of different moments\n");
		bad++;
	}
	printf("VERDICT %s", bad ? "bad" : "good");
	for (int i = 0; i < count; i++)
		printf(" %s=%llu", disks[i].path, (unsigned long long)disks[i].newest);
	printf("\n");
	return bad;
}

static void write_forever(struct disk *disks, int count, unsigned pause)
{
	uint64_t n = disks[0].newest;
	for (int i = 1; i < count; i++)
		if (disks[i].newest < n)
			n = disks[i].newest;
	for (;;) {
		n++;
		for (int i = 0; i < count; i++) {
			make_record(&disks[i], n);
			put(&disks[i], slot_of(&disks[i], n));
			make_header(&disks[i], n);
			put(&disks[i], 0);
		}
		printf("ACK %llu\n", (unsigned long long)n);
		if (pause)
			usleep(pause);
	}
}

int main(int argc, char **argv)
{
	struct disk disks[MAX_DISKS] = { 0 };
	int writing = argc > 1 && strcmp(argv[1], "write") == 0;
	int first = writing ? 4 : 3, count = argc - first;
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (count < 1 || count > MAX_DISKS) {
		printf("usage: records write SPAN PAUSE_US PATH... | records check SPAN PATH...\n");
		return 2;
	}
	if (posix_memalign((void **)&block, BLOCK, BLOCK))
		die("allocating", "a block");
	for (int i = 0; i < count; i++) {
		disks[i].path = argv[first + i];
		disks[i].number = i;
		open_disk(&disks[i], strtoull(argv[2], NULL, 10), 0);
	}
	if (verdict(disks, count))
		return 1;
	if (!writing)
		return 0;
	for (int i = 0; i < count; i++) {
		close(disks[i].fd);
		open_disk(&disks[i], strtoull(argv[2], NULL, 10), 1);
	}
	write_forever(disks, count, strtoul(argv[3], NULL, 10));
	return 0;
}
