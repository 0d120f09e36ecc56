/* A plugin for QEMU that counts cycles of a Cortex-M4 and notes when marked code runs.
 *
 * Costs are those of the Cortex-M4 Technical Reference Manual (DDI 0439, sections 3.3 and 7.2),
 * with memory that answers in one cycle. Where it gives a range: a taken branch refills the
 * pipeline in 2 cycles (1 to 3), a division takes 12 (2 to 12), an exception 12 in and 12 out.
 * Left out: stalls between dependent floats, fetches that compete with data, other bus masters.
 * A model, not a measurement.
 *
 * Arguments: out=FILE, at=ADDRESS:C (a line "C cycles" whenever that instruction runs),
 * loads=FIRST-LAST:C (a line "C cycles address" for each load of those instructions) and
 * exception=ADDRESS (the first instruction of a handler). */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What this file uses of QEMU's plugin interface, version 1. */
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef uint64_t plugin_id;
typedef void (*on_run)(unsigned cpu, void *data);
typedef void (*on_memory)(unsigned cpu, uint32_t info, uint64_t address, void *data);
enum { NO_REGISTERS = 0, READS_AND_WRITES = 3, ADD_U64 = 0 }; /* 7.2 takes "reads" for writes */
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id,
                                           void (*f)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, on_run f, int flags, void *d);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *i, on_run f, int flags,
                                            void *d);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *i, int op, void *p,
                                                uint64_t n);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *i, on_memory f, int flags, int rw,
                                      void *d);
void qemu_plugin_register_atexit_cb(plugin_id id, void (*f)(plugin_id, void *), void *d);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t i);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *i);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *i);
extern int qemu_plugin_version;
int qemu_plugin_version = 1;
int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv);

enum { REFILL = 2, DIVIDE = 12, EXCEPTION = 24, MARKS = 64, NONE = -1 };

typedef struct {
    uint64_t first, last;
    char letter;
    bool loads;
} mark;

static mark marks[MARKS];
static size_t mark_count;
static uint64_t exception_at = UINT64_MAX;
static FILE *out;
static uint64_t cycles, branches, branches_seen, expected;

/* What an instruction costs, and what the next one needs to know of it. */
typedef struct {
    int cost;
    bool load, store; /* of one register */
    bool store_imm;   /* which always takes one cycle */
    bool branch;
    int from, index; /* registers that make the address */
    int loaded;      /* the register that a load writes */
    int result;      /* the register that data processing writes */
} insn;

static int bits(unsigned v) {
    return __builtin_popcount(v);
}

static insn narrow(unsigned h) {
    insn k = {1, false, false, false, false, NONE, NONE, NONE, NONE};
    const unsigned top = h >> 12;
    const int low = (int)(h & 7u), mid = (int)(h >> 3 & 7u), third = (int)(h >> 8 & 7u);
    if (h >> 11 == 9u) { /* LDR, relative to the PC */
        k.load = true;
        k.loaded = third;
    } else if (top == 5u) {
        k.load = (h >> 9 & 7u) >= 3u;
        k.store = !k.load;
        k.from = mid;
        k.index = (int)(h >> 6 & 7u);
        k.loaded = k.load ? low : NONE;
    } else if (top >= 6u && top <= 9u) {
        k.load = (h & 0x0800u) != 0;
        k.store = k.store_imm = !k.load;
        k.from = top == 9u ? 13 : mid;
        k.loaded = !k.load ? NONE : (top == 9u ? third : low);
    } else if ((h & 0xF600u) == 0xB400u) { /* PUSH, POP */
        k.cost = 1 + bits(h & 0x1FFu);
        k.branch = (h & 0x0900u) == 0x0900u;
    } else if (top == 12u) { /* STM, LDM */
        k.cost = 1 + bits(h & 0xFFu);
    } else if (top == 13u || h >> 11 == 28u || (h & 0xFF00u) == 0x4700u ||
               (h & 0xF500u) == 0xB100u) {
        k.branch = true;
    } else if ((h & 0xFD00u) == 0x4400u) { /* ADD, MOV of any register */
        k.result = low | (int)(h >> 4 & 8u);
        k.branch = k.result == 15;
    } else if (top < 2u) {
        k.result = low;
    } else if (top < 4u || top == 10u) {
        k.result = h >> 11 == 5u ? NONE : third; /* CMP has none */
    } else if (h >> 10 == 16u) {
        const unsigned op = h >> 6 & 15u; /* TST, CMP, CMN have none */
        k.result = op == 8u || op == 10u || op == 11u ? NONE : low;
    } else if ((h & 0xFF00u) == 0xB200u || (h & 0xFF00u) == 0xBA00u) {
        k.result = low;
    } else if ((h & 0xFF00u) == 0xB000u) {
        k.result = 13;
    }
    return k;
}

static insn wide(unsigned h, unsigned g) {
    insn k = {1, false, false, false, false, NONE, NONE, NONE, NONE};
    const int rn = (int)(h & 15u), rt = (int)(g >> 12), rd = (int)(g >> 8 & 15u);
    if ((h & 0xFFF0u) == 0xE8D0u && (g & 0xFFE0u) == 0xF000u) { /* TBB, TBH */
        k.cost = 3;
        k.branch = true;
    } else if ((h & 0xFE40u) == 0xE800u) { /* LDM, STM */
        k.cost = 1 + bits(g);
        k.branch = (h & 0x10u) != 0 && g >> 15 != 0;
    } else if ((h & 0xFE40u) == 0xE840u) { /* LDRD, STRD */
        k.cost = 3;
        k.from = rn == 15 ? NONE : rn;
    } else if ((h & 0xFE00u) == 0xF800u) {
        const bool by_register = (h & 0x80u) == 0 && (g & 0x0FC0u) == 0 && rn != 15;
        k.load = (h & 0x10u) != 0;
        k.store = !k.load;
        k.store_imm = k.store && !by_register;
        k.from = rn == 15 ? NONE : rn;
        k.index = by_register ? (int)(g & 15u) : NONE;
        k.loaded = k.load ? rt : NONE;
        k.branch = k.loaded == 15 && (h & 0x60u) == 0x40u;
    } else if ((h & 0xFE00u) == 0xEC00u && (h & 0xFFE0u) != 0xEC40u) { /* VLDR, VLDM and stores */
        const bool one = (h & 0x0120u) == 0x0100u;
        k.cost = !one ? 1 + (int)(g & 0xFFu) : ((g & 0x0100u) != 0 ? 3 : 2);
        k.from = rn == 15 ? NONE : rn;
    } else if ((h & 0xFFE0u) == 0xEC40u) { /* VMOV of two registers */
        k.cost = 2;
    } else if ((h & 0xFF00u) == 0xEE00u && (g & 0x0E10u) == 0x0A00u) {
        switch (h >> 4 & 11u) {
        case 0: /* VMLA, VMLS */
        case 1: /* VNMLA, VNMLS */
        case 9: /* VFNMA, VFNMS */
        case 10: /* VFMA, VFMS */ k.cost = 3; break;
        case 8: /* VDIV */ k.cost = 14; break;
        case 11: /* VSQRT among others of one operand */
            k.cost = (h & 15u) == 1u && (g & 0xC0u) == 0xC0u ? 14 : 1;
            break;
        default: break;
        }
    } else if ((h & 0xFFD0u) == 0xFB90u) { /* SDIV, UDIV */
        k.cost = DIVIDE;
        k.result = rd;
    } else if ((h & 0xF800u) == 0xF000u && (g & 0x8000u) != 0) {
        k.branch = (g & 0x5000u) != 0 || (h & 0x0380u) != 0x0380u; /* not MSR, MRS, barriers */
    } else if ((h & 0xEE00u) == 0xEA00u || (h & 0xF800u) == 0xF000u || (h & 0xFE00u) == 0xFA00u) {
        k.result = rd;
    }
    return k;
}

static const insn nothing = {1, false, false, false, false, NONE, NONE, NONE, NONE};

/* The cycles of an instruction behind another. */
static int cost(const insn *k, const insn *before) {
    int n = k->cost;
    const bool one = k->load || k->store;
    const int from = k->from, index = k->index;
    if (one) {
        const bool needs =
            before->loaded != NONE && (before->loaded == from || before->loaded == index);
        const bool pipelined = before->load && !needs;
        n = k->store_imm || pipelined ? 1 : 2;
    }
    if (before->result != NONE && (before->result == from || before->result == index)) {
        n++; /* the address depends on a result of the cycle before */
    }
    return n;
}

typedef struct {
    uint64_t first, after;
    insn head, tail;
} block;

static insn last;

static void on_block(unsigned cpu, void *data) {
    const block *b = data;
    (void)cpu;
    if (branches != branches_seen) { /* an interrupted block never came to its branch */
        branches_seen = branches;
        cycles += b->first != expected ? REFILL : 0u;
    } else if (b->first == expected) { /* blocks end with pages */
        cycles += (uint64_t)(cost(&b->head, &last) - cost(&b->head, &nothing));
    }
    expected = b->after;
    last = b->tail;
}

static void on_mark(unsigned cpu, void *data) {
    (void)cpu;
    fprintf(out, "%c %" PRIu64 "\n", ((const mark *)data)->letter, cycles);
}

static void on_load(unsigned cpu, uint32_t info, uint64_t address, void *data) {
    (void)cpu;
    (void)info;
    fprintf(out, "%c %" PRIu64 " %" PRIu64 "\n", ((const mark *)data)->letter, cycles, address);
}

/* An instruction and its bytes. QEMU's own size is not used: in front of the last 2 bytes of a page
 * it reads these too, to see whether an instruction crosses, and adds them to the one before. */
static insn decoded(const struct qemu_plugin_insn *q, size_t *size) {
    const uint8_t *data = qemu_plugin_insn_data(q);
    uint16_t half[2];
    memcpy(half, data, 2);
    *size = half[0] >> 11 >= 29u ? 4 : 2;
    if (*size == 2) {
        return narrow(half[0]);
    }
    memcpy(half + 1, data + 2, 2);
    return wide(half[0], half[1]);
}

static void on_translation(plugin_id id, struct qemu_plugin_tb *tb) {
    const size_t n = qemu_plugin_tb_n_insns(tb);
    block *b = malloc(sizeof *b);
    insn before = nothing;
    (void)id;
    if (b == NULL) {
        abort();
    }
    for (size_t i = 0; i < n; i++) {
        struct qemu_plugin_insn *q = qemu_plugin_tb_get_insn(tb, i);
        const uint64_t at = qemu_plugin_insn_vaddr(q);
        size_t size;
        const insn k = decoded(q, &size);
        const int c = cost(&k, &before) + (at == exception_at ? EXCEPTION : 0);
        for (size_t m = 0; m < mark_count; m++) {
            if (marks[m].loads && at >= marks[m].first && at <= marks[m].last) {
                qemu_plugin_register_vcpu_mem_cb(q, on_load, NO_REGISTERS, READS_AND_WRITES,
                                                 &marks[m]);
            } else if (!marks[m].loads && at == marks[m].first) {
                qemu_plugin_register_vcpu_insn_exec_cb(q, on_mark, NO_REGISTERS, &marks[m]);
            }
        }
        qemu_plugin_register_vcpu_insn_exec_inline(q, ADD_U64, &cycles, (uint64_t)c);
        if (k.branch) {
            qemu_plugin_register_vcpu_insn_exec_inline(q, ADD_U64, &branches, 1);
        }
        if (i == 0) {
            b->first = at;
            b->head = k;
        }
        b->after = at + size;
        before = k;
    }
    b->tail = before;
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, NO_REGISTERS, b);
}

static void on_exit_of_qemu(plugin_id id, void *data) {
    (void)id;
    (void)data;
    fprintf(out, ". %" PRIu64 "\n", cycles);
    fclose(out);
}

static bool argument(const char *a) {
    mark m = {0, 0, 0, false};
    if (strncmp(a, "out=", 4) == 0) {
        out = fopen(a + 4, "w");
        return out != NULL;
    }
    if (sscanf(a, "exception=%" SCNx64, &exception_at) == 1) {
        return true;
    }
    if (sscanf(a, "at=%" SCNx64 ":%c", &m.first, &m.letter) != 2) {
        m.loads = true;
        if (sscanf(a, "loads=%" SCNx64 "-%" SCNx64 ":%c", &m.first, &m.last, &m.letter) != 3) {
            return false;
        }
    }
    if (mark_count == MARKS) {
        return false;
    }
    marks[mark_count++] = m;
    return true;
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (!argument(argv[i])) {
            fprintf(stderr, "m4_cycles: bad argument %s\n", argv[i]);
            return -1;
        }
    }
    if (out == NULL) {
        fprintf(stderr, "m4_cycles: out= is missing\n");
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_atexit_cb(id, on_exit_of_qemu, NULL);
    return 0;
}
