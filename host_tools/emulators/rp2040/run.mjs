// An RP2040 whose UART0 is a TCP port.
//
//   node run.mjs modules=FOLDER uf2=FILE port=N [name=value ...]
//
// modules    folder whose node_modules holds rp2040js
// uf2        what a flash program would write; the boot ROM's part is played here: it checks the
//            CRC of the second stage, copies it to SRAM and enters it
// port       TCP port on 127.0.0.1 that plays UART0
// stats      file for counters, written when the client leaves
// profile    file for cycles by address of SRAM code, written with stats
// overhead, refill    see flash.mjs
// quad       1: the flash comes with four lanes enabled; 0: it can be told; -1: it has one lane
//
// Received bytes come at the programmed baud rate, and wait while the receive FIFO is full.
// Sent bytes take no time. The emulation ends when the client leaves, or none comes in a minute.
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { createRequire } from 'node:module';
import { makeCore } from './core.mjs';
import { makeFlash } from './flash.mjs';

const SRAM = 0x20000000;
const BOOT2 = 0x20041f00;

function fail(sentence) {
  console.error(sentence);
  process.exit(1);
}

const options = { overhead: 8, refill: 2, quad: 1, port: 0 };
for (const word of process.argv.slice(2)) {
  const [name, ...rest] = word.split('=');
  options[name] = rest.join('=');
}
if (!options.modules || !options.uf2) fail('usage: node run.mjs modules=FOLDER uf2=FILE port=N');

let rp2040js;
try {
  rp2040js = createRequire(path.resolve(options.modules, 'index.js'))('rp2040js');
} catch {
  fail(`rp2040js is not installed under ${options.modules}; run npm ci there`);
}
const { RP2040, BasePeripheral, ConsoleLogger, LogLevel } = rp2040js;

const mcu = new RP2040();
const clock = mcu.clock;
mcu.logger = new ConsoleLogger(LogLevel.Error, true);

// ---- flash content ----
function loadUf2(file) {
  const data = fs.readFileSync(file);
  let blocks = 0;
  for (let at = 0; at + 512 <= data.length; at += 512) {
    if (data.readUInt32LE(at) !== 0x0a324655 || data.readUInt32LE(at + 4) !== 0x9e5d5157) continue;
    if (data.readUInt32LE(at + 508) !== 0x0ab16f30) continue;
    if (!(data.readUInt32LE(at + 8) & 0x2000) || data.readUInt32LE(at + 28) !== 0xe48bff56) continue;
    const address = data.readUInt32LE(at + 12) - 0x10000000;
    const size = data.readUInt32LE(at + 16);
    if (address < 0 || address + size > mcu.flash.length) fail(`${file}: a block lies outside the flash`);
    data.copy(mcu.flash, address, at + 32, at + 32 + size);
    blocks++;
  }
  if (!blocks) fail(`${file} has no UF2 block for an RP2040`);
}
mcu.flash.fill(0xff);
loadUf2(options.uf2);

// ---- core, flash timing ----
const flash = makeFlash({
  BasePeripheral,
  mcu,
  clock,
  overhead: +options.overhead,
  refill: +options.refill,
  quadEnable: +options.quad,
});
const Core = makeCore(Object.getPrototypeOf(mcu.core).constructor);
const core = new Core(mcu, flash.memory);
mcu.core = core;
if (options.profile) core.profile = new Float64Array(mcu.sram.length / 2);

let told = 0; // cycles the clock was told of
flash.memory.tick = (cycles) => {
  if (cycles > told) {
    const passed = cycles - told;
    told = cycles;
    clock.tick((passed * 1e9) / mcu.clkSys);
  }
};

// ---- boot ROM ----
function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte << 24;
    for (let i = 0; i < 8; i++) crc = crc & 0x80000000 ? (crc << 1) ^ 0x04c11db7 : crc << 1;
  }
  return crc >>> 0;
}
if (crc32(mcu.flash.subarray(0, 252)) !== Buffer.from(mcu.flash.buffer).readUInt32LE(252)) {
  fail('the second stage of the flash has a wrong CRC: the boot ROM would not enter it');
}
mcu.sram.set(mcu.flash.subarray(0, 256), BOOT2 - SRAM);
core.SP = BOOT2;
core.LR = 0;
core.PC = BOOT2;

// ---- UART0 ----
const uart = mcu.uart[0];
let socket = null;
let input = [];
let taken = 0;
let output = [];
let coming = false;
uart.onByte = (byte) => output.push(byte);
const receive = clock.createAlarm(() => {
  coming = false;
  if (taken < input.length && !uart.rxFIFO.full) uart.feedByte(input[taken++]);
  if (taken === input.length) {
    input = [];
    taken = 0;
  }
  listen();
});
function listen() {
  if (coming || !input.length || !uart.enabled) return;
  coming = true;
  receive.schedule(1e10 / (uart.baudRate || 115200));
}

// ---- running ----
const SLICE_MS = 10;
let scheduled = false;
let ended = false;

function report() {
  const total = {
    instructions: core.instructions,
    cycles: Math.round(core.cycles),
    clock_hz: mcu.clkSys,
    flash_word_cycles: flash.ssi.word,
    ...flash.seen,
  };
  if (options.stats) fs.writeFileSync(options.stats, JSON.stringify(total) + '\n');
  if (options.profile) {
    const rows = [];
    core.profile.forEach((cycles, i) => cycles && rows.push([SRAM + 2 * i, cycles]));
    fs.writeFileSync(options.profile, JSON.stringify(rows) + '\n');
  }
}

function end(code) {
  if (ended) return;
  ended = true;
  report();
  process.exit(code);
}

function send() {
  if (output.length && socket) socket.write(Buffer.from(output));
  output = [];
}

function slice() {
  scheduled = false;
  const until = performance.now() + SLICE_MS;
  let slept = 0;
  try {
    while (performance.now() < until) {
      listen();
      const next = clock.nextAlarm ? clock.nanosToNextAlarm : Infinity;
      const cycleNanos = 1e9 / mcu.clkSys;
      if (core.waiting) {
        if (next === Infinity) {
          send();
          return; // until the client sends
        }
        core.cycles += Math.max(1, Math.ceil(next / cycleNanos));
        flash.memory.tick(core.cycles);
        if (core.interruptsUpdated) core.checkForInterrupts();
        if (core.waiting && ++slept > 64 && !coming) break; // nobody needs this time: do not burn it
        continue;
      }
      core.run(core.cycles + Math.min(50000, Math.max(1, Math.ceil(next / cycleNanos))));
      flash.memory.tick(core.cycles);
      slept = 0;
    }
  } catch (error) {
    console.error(`the firmware stopped: ${error.message}; PC 0x${core.PC.toString(16)}`);
    return end(1);
  }
  send();
  wake(slept > 64 ? 2 : 0);
}

function wake(delay = 0) {
  if (scheduled || ended) return;
  scheduled = true;
  if (delay) setTimeout(slice, delay);
  else setImmediate(slice);
}

const server = net.createServer({ noDelay: true }, (client) => {
  if (socket) return client.destroy();
  socket = client;
  client.on('data', (data) => {
    for (const byte of data) input.push(byte);
    wake();
  });
  client.on('error', () => {});
  client.on('close', () => end(0));
  wake();
});
server.on('error', (error) => fail(`cannot listen on port ${options.port}: ${error.message}`));
server.listen(+options.port, '127.0.0.1', () =>
  console.log(`PORT socket://127.0.0.1:${server.address().port}`),
);
setTimeout(() => socket || fail('no client came'), 60000).unref();
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => end(0));
