// The Cortex-M0+ of the emulator: rp2040js's core with its instruction loop replaced.
//
// Why not the original: it takes an exception out of WFI although PRIMASK is set, drops a carry in
// ADCS and SBCS, and runs a fifth as fast. Its state (NVIC, exceptions, registers) stays in use.
// Cycles: Cortex-M0+ TRM, table 3-1, with the RP2040's single-cycle multiplier; the bus adds what
// `memory` answers.

export class Fault extends Error {}

const hex = (v) => '0x' + (v >>> 0).toString(16).padStart(8, '0');

export function makeCore(Base) {
  return class Core extends Base {
    constructor(mcu, memory) {
      super(mcu);
      const buffer = new ArrayBuffer(64);
      this.registers = new Uint32Array(buffer);
      this.r = new Int32Array(buffer);
      this.memory = memory;
      this.instructions = 0;
      this.profile = null; // Float64Array of cycles by halfword of SRAM
      this.stopping = false;
    }

    // The original enters the handler here; WFI only has to end.
    setInterrupt(irq, value) {
      const bit = 1 << irq;
      if (value) {
        this.pendingInterrupts |= bit;
        this.interruptsUpdated = true;
        this.stopping = true;
        if (this.waiting && this.enabledInterrupts & bit) this.waiting = false;
      } else {
        this.pendingInterrupts &= ~bit;
      }
    }

    checkForInterrupts() {
      const pending =
        this.pendingInterrupts & this.enabledInterrupts || this.pendingSystick || this.pendingPendSV;
      if (!pending) {
        this.interruptsUpdated = false;
        return false;
      }
      this.waiting = false;
      return super.checkForInterrupts();
    }

    exceptionEntry(number) {
      super.exceptionEntry(number);
      this.cycles += 15;
    }

    slowRead(address, size, pc, cycles) {
      this.memory.sync(cycles);
      const { rp2040 } = this;
      const a = address >>> 0;
      if (a < 0x10000000 || (a >= 0x14000000 && a < 0x14004000 && size !== 4)) {
        throw new Fault(`read of ${hex(a)} at ${hex(pc)}`);
      }
      if (a >= 0x20000000 && a < 0x40000000) throw new Fault(`read of ${hex(a)} at ${hex(pc)}`);
      return size === 4 ? rp2040.readUint32(a) : size === 2 ? rp2040.readUint16(a) : rp2040.readUint8(a);
    }

    slowWrite(address, value, size, pc, cycles) {
      this.memory.sync(cycles);
      const { rp2040 } = this;
      const a = address >>> 0;
      if (a < 0x14000000 || (a >= 0x20000000 && a < 0x40000000)) {
        throw new Fault(`write of ${hex(a)} at ${hex(pc)}`);
      }
      if (size === 4) rp2040.writeUint32(a, value >>> 0);
      else if (size === 2) rp2040.writeUint16(a, value & 0xffff);
      else rp2040.writeUint8(a, value & 0xff);
      this.stopping = true; // an interrupt or the time to the next alarm may have changed
    }

    // Runs until `end` cycles, WFI, or something outside the core wants a look.
    run(end) {
      if (this.interruptsUpdated && this.checkForInterrupts()) this.waiting = false;
      if (this.waiting) return;
      const { r, memory, profile } = this;
      const { ram8, ram16, ram32, flash8, flash16, flash32 } = memory;
      const ramBytes = ram8.length;
      let pc = r[15] & ~1;
      let cycles = this.cycles;
      let count = 0;
      let nz = this.Z ? 0 : this.N ? -1 : 1; // N and Z are those of this value
      let c = this.C ? 1 : 0;
      let v = this.V ? 1 : 0;
      this.stopping = false;

      const load32 = (a, at) => {
        if (a & 3) throw new Fault(`unaligned read of ${hex(a)} at ${hex(at)}`);
        const o = a - 0x20000000;
        if (o >= 0 && o < ramBytes) return ram32[o >> 2];
        if (a >>> 26 === 4) {
          cycles += memory.xip(a, cycles);
          return flash32[(a & 0xffffff) >> 2];
        }
        cycles += a >>> 28 === 0xd ? -1 : a >>> 28 === 4 ? 2 : 0;
        return this.slowRead(a, 4, at, cycles) | 0;
      };
      const load16 = (a, at) => {
        if (a & 1) throw new Fault(`unaligned read of ${hex(a)} at ${hex(at)}`);
        const o = a - 0x20000000;
        if (o >= 0 && o < ramBytes) return ram16[o >> 1];
        if (a >>> 26 === 4) {
          cycles += memory.xip(a, cycles);
          return flash16[(a & 0xffffff) >> 1];
        }
        return this.slowRead(a, 2, at, cycles);
      };
      const load8 = (a, at) => {
        const o = a - 0x20000000;
        if (o >= 0 && o < ramBytes) return ram8[o];
        if (a >>> 26 === 4) {
          cycles += memory.xip(a, cycles);
          return flash8[a & 0xffffff];
        }
        return this.slowRead(a, 1, at, cycles);
      };
      const store32 = (a, x, at) => {
        if (a & 3) throw new Fault(`unaligned write of ${hex(a)} at ${hex(at)}`);
        const o = a - 0x20000000;
        if (o >= 0 && o < ramBytes) {
          ram32[o >> 2] = x;
          return;
        }
        cycles += a >>> 28 === 0xd ? -1 : a >>> 28 === 4 ? 3 : 0;
        this.slowWrite(a, x, 4, at, cycles);
      };
      const store16 = (a, x, at) => {
        if (a & 1) throw new Fault(`unaligned write of ${hex(a)} at ${hex(at)}`);
        const o = a - 0x20000000;
        if (o >= 0 && o < ramBytes) ram16[o >> 1] = x;
        else this.slowWrite(a, x, 2, at, cycles);
      };
      const store8 = (a, x, at) => {
        const o = a - 0x20000000;
        if (o >= 0 && o < ramBytes) ram8[o] = x;
        else this.slowWrite(a, x, 1, at, cycles);
      };
      const add = (x, y) => {
        const z = (x + y) | 0;
        c = z >>> 0 < x >>> 0 ? 1 : 0;
        v = ((x ^ z) & (y ^ z)) < 0 ? 1 : 0;
        nz = z;
        return z;
      };
      const adc = (x, y) => {
        const sum = (x >>> 0) + (y >>> 0) + c;
        const z = sum | 0;
        c = sum > 0xffffffff ? 1 : 0;
        v = ((x ^ z) & (y ^ z)) < 0 ? 1 : 0;
        nz = z;
        return z;
      };
      const sub = (x, y) => {
        const z = (x - y) | 0;
        c = x >>> 0 >= y >>> 0 ? 1 : 0;
        v = ((x ^ y) & (x ^ z)) < 0 ? 1 : 0;
        nz = z;
        return z;
      };
      const save = () => {
        r[15] = pc;
        this.cycles = cycles;
        this.instructions += count;
        count = 0;
        this.N = nz < 0;
        this.Z = nz === 0;
        this.C = c === 1;
        this.V = v === 1;
      };

      while (cycles < end) {
        const at = pc;
        const before = cycles;
        let op;
        const o = at - 0x20000000;
        if (o >= 0 && o < ramBytes) op = ram16[o >> 1];
        else if (at >>> 26 === 4) {
          if (!(at & 2)) cycles += memory.xip(at, cycles); // fetches are words
          op = flash16[(at & 0xffffff) >> 1];
        } else {
          save();
          throw new Fault(`jump to ${hex(at)}, LR ${hex(r[14])}`);
        }
        pc = at + 2;
        cycles++;
        count++;
        const d = op & 7;
        const n = (op >> 3) & 7;
        const m = (op >> 6) & 7;
        const i5 = (op >> 6) & 31;
        switch (op >> 11) {
          case 0: // LSLS imm
            if (i5) c = (r[n] >>> (32 - i5)) & 1;
            nz = r[d] = r[n] << i5;
            break;
          case 1: // LSRS imm
            c = (r[n] >>> (i5 ? i5 - 1 : 31)) & 1;
            nz = r[d] = i5 ? r[n] >>> i5 : 0;
            nz |= 0;
            break;
          case 2: // ASRS imm
            c = (r[n] >>> (i5 ? i5 - 1 : 31)) & 1;
            nz = r[d] = r[n] >> (i5 || 31);
            break;
          case 3: {
            const y = op & 0x400 ? m : r[m];
            r[d] = op & 0x200 ? sub(r[n], y) : add(r[n], y);
            break;
          }
          case 4: // MOVS imm
            nz = r[(op >> 8) & 7] = op & 255;
            break;
          case 5: // CMP imm
            sub(r[(op >> 8) & 7], op & 255);
            break;
          case 6: // ADDS imm
            r[(op >> 8) & 7] = add(r[(op >> 8) & 7], op & 255);
            break;
          case 7: // SUBS imm
            r[(op >> 8) & 7] = sub(r[(op >> 8) & 7], op & 255);
            break;
          case 8:
            if (op & 0x400) {
              // High registers and branches
              const hd = (op & 7) | ((op >> 4) & 8);
              const hm = (op >> 3) & 15;
              const y = hm === 15 ? at + 4 : r[hm];
              switch ((op >> 8) & 3) {
                case 0: {
                  const z = ((hd === 15 ? at + 4 : r[hd]) + y) | 0;
                  if (hd === 15) {
                    pc = z & ~1;
                    cycles++;
                  } else r[hd] = hd === 13 ? z & ~3 : z;
                  break;
                }
                case 1:
                  sub(r[hd], y);
                  break;
                case 2:
                  if (hd === 15) {
                    pc = y & ~1;
                    cycles++;
                  } else r[hd] = hd === 13 ? y & ~3 : y;
                  break;
                default:
                  if (op & 7) throw new Fault(`undefined ${hex(op)} at ${hex(at)}`);
                  cycles++;
                  if (op & 0x80) r[14] = pc | 1;
                  if (y >>> 28 === 15 && !(op & 0x80)) {
                    save();
                    this.BXWritePC(y >>> 0);
                    this.checkForInterrupts();
                    return;
                  }
                  if (!(y & 1)) throw new Fault(`branch to ARM state, ${hex(y)}, at ${hex(at)}`);
                  pc = y & ~1;
              }
              break;
            }
            switch ((op >> 6) & 15) {
              case 0:
                nz = r[d] = r[d] & r[n];
                break;
              case 1:
                nz = r[d] = r[d] ^ r[n];
                break;
              case 2: {
                const s = r[n] & 255;
                if (s) {
                  c = s <= 32 ? (s === 32 ? r[d] : r[d] >>> (32 - s)) & 1 : 0;
                  r[d] = s < 32 ? r[d] << s : 0;
                }
                nz = r[d];
                break;
              }
              case 3: {
                const s = r[n] & 255;
                if (s) {
                  c = s <= 32 ? (r[d] >>> (s - 1)) & 1 : 0;
                  r[d] = s < 32 ? r[d] >>> s : 0;
                }
                nz = r[d];
                break;
              }
              case 4: {
                const s = r[n] & 255;
                if (s) {
                  c = s <= 32 ? (r[d] >>> (s - 1)) & 1 : r[d] >>> 31;
                  r[d] = r[d] >> (s < 32 ? s : 31);
                }
                nz = r[d];
                break;
              }
              case 5:
                r[d] = adc(r[d], r[n]);
                break;
              case 6:
                r[d] = adc(r[d], ~r[n]);
                break;
              case 7: {
                const s = r[n] & 255;
                if (s) {
                  const k = s & 31;
                  r[d] = k ? (r[d] >>> k) | (r[d] << (32 - k)) : r[d];
                  c = r[d] >>> 31;
                }
                nz = r[d];
                break;
              }
              case 8:
                nz = r[d] & r[n];
                break;
              case 9:
                r[d] = sub(0, r[n]);
                break;
              case 10:
                sub(r[d], r[n]);
                break;
              case 11:
                add(r[d], r[n]);
                break;
              case 12:
                nz = r[d] = r[d] | r[n];
                break;
              case 13:
                nz = r[d] = Math.imul(r[d], r[n]);
                break;
              case 14:
                nz = r[d] = r[d] & ~r[n];
                break;
              default:
                nz = r[d] = ~r[n];
            }
            break;
          case 9: // LDR literal
            cycles++;
            r[(op >> 8) & 7] = load32(((at + 4) & ~3) + ((op & 255) << 2), at);
            break;
          case 10: {
            cycles++;
            const a = (r[n] + r[m]) | 0;
            const kind = (op >> 9) & 3;
            if (kind === 0) store32(a, r[d], at);
            else if (kind === 1) store16(a, r[d], at);
            else if (kind === 2) store8(a, r[d], at);
            else r[d] = (load8(a, at) << 24) >> 24;
            break;
          }
          case 11: {
            cycles++;
            const a = (r[n] + r[m]) | 0;
            const kind = (op >> 9) & 3;
            if (kind === 0) r[d] = load32(a, at);
            else if (kind === 1) r[d] = load16(a, at);
            else if (kind === 2) r[d] = load8(a, at);
            else r[d] = (load16(a, at) << 16) >> 16;
            break;
          }
          case 12:
            cycles++;
            store32((r[n] + (i5 << 2)) | 0, r[d], at);
            break;
          case 13:
            cycles++;
            r[d] = load32((r[n] + (i5 << 2)) | 0, at);
            break;
          case 14:
            cycles++;
            store8((r[n] + i5) | 0, r[d], at);
            break;
          case 15:
            cycles++;
            r[d] = load8((r[n] + i5) | 0, at);
            break;
          case 16:
            cycles++;
            store16((r[n] + (i5 << 1)) | 0, r[d], at);
            break;
          case 17:
            cycles++;
            r[d] = load16((r[n] + (i5 << 1)) | 0, at);
            break;
          case 18:
            cycles++;
            store32((r[13] + ((op & 255) << 2)) | 0, r[(op >> 8) & 7], at);
            break;
          case 19:
            cycles++;
            r[(op >> 8) & 7] = load32((r[13] + ((op & 255) << 2)) | 0, at);
            break;
          case 20: // ADR
            r[(op >> 8) & 7] = ((at + 4) & ~3) + ((op & 255) << 2);
            break;
          case 21:
            r[(op >> 8) & 7] = (r[13] + ((op & 255) << 2)) | 0;
            break;
          case 22:
          case 23:
            switch ((op >> 8) & 15) {
              case 0:
                r[13] += (op & 0x80 ? -4 : 4) * (op & 127);
                break;
              case 2:
                r[d] =
                  m & 2
                    ? m & 1
                      ? r[n] & 0xff
                      : r[n] & 0xffff
                    : m & 1
                      ? (r[n] << 24) >> 24
                      : (r[n] << 16) >> 16;
                break;
              case 4:
              case 5: {
                // PUSH
                let a = r[13];
                if (op & 0x100) {
                  a -= 4;
                  cycles++;
                  store32(a, r[14], at);
                }
                for (let k = 7; k >= 0; k--) {
                  if (op & (1 << k)) {
                    a -= 4;
                    cycles++;
                    store32(a, r[k], at);
                  }
                }
                r[13] = a;
                break;
              }
              case 12:
              case 13: {
                // POP
                let a = r[13];
                for (let k = 0; k < 8; k++) {
                  if (op & (1 << k)) {
                    r[k] = load32(a, at);
                    a += 4;
                    cycles++;
                  }
                }
                if (op & 0x100) {
                  const y = load32(a, at);
                  r[13] = a + 4;
                  cycles += 2;
                  if (y >>> 28 === 15) {
                    save();
                    this.BXWritePC(y >>> 0);
                    this.checkForInterrupts();
                    return;
                  }
                  if (!(y & 1)) throw new Fault(`return to ARM state, ${hex(y)}, at ${hex(at)}`);
                  pc = y & ~1;
                } else r[13] = a;
                break;
              }
              case 6: // CPSIE, CPSID
                this.PM = (op & 0x10) !== 0;
                if (!this.PM) {
                  this.interruptsUpdated = true;
                  this.stopping = true;
                }
                break;
              case 10: {
                const x = r[n];
                const swapped = ((x & 0x00ff00ff) << 8) | ((x >>> 8) & 0x00ff00ff);
                if (m === 0) r[d] = (swapped << 16) | (swapped >>> 16);
                else if (m === 1) r[d] = swapped;
                else if (m === 3) r[d] = (swapped << 16) >> 16;
                else throw new Fault(`undefined ${hex(op)} at ${hex(at)}`);
                break;
              }
              case 15:
                if (op === 0xbf20 || op === 0xbf30) {
                  cycles++;
                  if (op === 0xbf20 && this.eventRegistered) this.eventRegistered = false;
                  else if (!(this.pendingInterrupts & this.enabledInterrupts)) {
                    this.waiting = true;
                    this.stopping = true;
                  }
                } else if (op & 15) throw new Fault(`undefined ${hex(op)} at ${hex(at)}`);
                break;
              default: // BKPT is 14
                save();
                throw new Fault(`${op >> 8 === 0xbe ? 'breakpoint' : 'undefined'} ${hex(op)} at ${hex(at)}`);
            }
            break;
          case 24: {
            // STMIA
            const k0 = (op >> 8) & 7;
            let a = r[k0];
            for (let k = 0; k < 8; k++) {
              if (op & (1 << k)) {
                cycles++;
                store32(a, r[k], at);
                a = (a + 4) | 0;
              }
            }
            r[k0] = a;
            break;
          }
          case 25: {
            // LDMIA
            const k0 = (op >> 8) & 7;
            let a = r[k0];
            for (let k = 0; k < 8; k++) {
              if (op & (1 << k)) {
                cycles++;
                r[k] = load32(a, at);
                a = (a + 4) | 0;
              }
            }
            if (!(op & (1 << k0))) r[k0] = a;
            break;
          }
          case 26:
          case 27: {
            const condition = (op >> 8) & 15;
            if (condition >= 14) {
              save();
              throw new Fault(`${condition === 15 ? 'SVC' : 'undefined'} ${hex(op)} at ${hex(at)}`);
            }
            let yes;
            switch (condition >> 1) {
              case 0:
                yes = nz === 0;
                break;
              case 1:
                yes = c === 1;
                break;
              case 2:
                yes = nz < 0;
                break;
              case 3:
                yes = v === 1;
                break;
              case 4:
                yes = c === 1 && nz !== 0;
                break;
              case 5:
                yes = nz < 0 === (v === 1);
                break;
              default:
                yes = nz !== 0 && nz < 0 === (v === 1);
            }
            if (yes !== ((condition & 1) === 1)) {
              pc = at + 4 + ((op << 24) >> 23);
              cycles++;
            }
            break;
          }
          case 28:
            pc = at + 4 + ((op << 21) >> 20);
            cycles++;
            break;
          case 30: {
            const o2 = pc - 0x20000000;
            if (!(o2 >= 0 && o2 < ramBytes) && !(pc & 2)) cycles += memory.xip(pc, cycles);
            const op2 = o2 >= 0 && o2 < ramBytes ? ram16[o2 >> 1] : flash16[(pc & 0xffffff) >> 1];
            pc += 2;
            cycles += 2;
            if ((op2 & 0xd000) === 0xd000) {
              const s = (op >> 10) & 1;
              const i1 = 1 ^ s ^ ((op2 >> 13) & 1);
              const i2 = 1 ^ s ^ ((op2 >> 11) & 1);
              const offset =
                (s ? 0xff000000 : 0) | (i1 << 23) | (i2 << 22) | ((op & 1023) << 12) | ((op2 & 2047) << 1);
              r[14] = pc | 1;
              pc = (pc + offset) | 0;
            } else if (op === 0xf3bf) {
              // DSB, DMB, ISB
            } else if (op === 0xf3ef) {
              save();
              r[(op2 >> 8) & 15] = this.readSpecialRegister(op2 & 255);
            } else if (op >> 4 === 0xf38) {
              save();
              this.writeSpecialRegister(op2 & 255, r[op & 15] >>> 0);
              this.stopping = true;
            } else {
              save();
              throw new Fault(`undefined ${hex(op)} ${hex(op2)} at ${hex(at)}`);
            }
            break;
          }
          default:
            save();
            throw new Fault(`undefined ${hex(op)} at ${hex(at)}`);
        }
        if (profile !== null && o >= 0) profile[o >> 1] += cycles - before;
        if (this.stopping) break;
      }
      save();
    }
  };
}
