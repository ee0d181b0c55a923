# The test guest: a boot sector that talks on COM1 and obeys the ACPI power button. It starts in a second under TCG and
# does nothing that it was not told to. What it is told are single characters:
#   q power off   r reset   i ignore the power button   f print 4096 numbered lines   l print a line of 40000 x
#   Enter a new prompt; every other character is echoed.
#
#   as --32 -o guest.o guest.s && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o guest.bin guest.o

	.code16
	.set COM, 0x3f8
	.set PM1_STS, 0x600		# where SeaBIOS puts the ACPI registers
	.set PM1_EN, 0x602
	.set PM1_CNT, 0x604
	.set POWER_BUTTON, 0x100

	.globl _start
_start:
	cli
	xorw %ax, %ax
	movw %ax, %ds
	movw %ax, %ss
	movw $0x7c00, %sp
	cld
	movw $PM1_EN, %dx
	movw $POWER_BUTTON, %ax
	outw %ax, %dx
	movw $up, %si
	call print
	movw $prompt, %si
	call print

loop:
	movw $PM1_STS, %dx
	inw %dx, %ax
	testw $POWER_BUTTON, %ax
	jnz poweroff
	movw $COM+5, %dx
	inb %dx, %al
	testb $1, %al
	jz loop
	movw $COM, %dx
	inb %dx, %al
	cmpb $'q', %al
	je poweroff
	cmpb $'r', %al
	je reset
	cmpb $'i', %al
	je ignore
	cmpb $'f', %al
	je flood
	cmpb $'l', %al
	je long
	cmpb $'\r', %al
	je enter
	call put
	jmp loop

enter:
	movw $newline, %si
	call print
	movw $prompt, %si
	call print
	jmp loop

poweroff:
	movw $bye, %si
	call print
	movw $PM1_CNT, %dx
	movw $0x2000, %ax
	outw %ax, %dx
	hlt

reset:
	movb $0xfe, %al
	outb %al, $0x64
	hlt

ignore:
	movw $PM1_EN, %dx
	xorw %ax, %ax
	outw %ax, %dx
	movw $ignoring, %si
	call print
	jmp loop

flood:
	xorw %bx, %bx
1:	movw $line, %si
	call print
	movw %bx, %cx
	call hex
	movw $newline, %si
	call print
	incw %bx
	cmpw $4096, %bx
	jne 1b
	jmp loop

long:
	movw $40000, %bx
1:	movb $'x', %al
	call put
	decw %bx
	jnz 1b
	movw $newline, %si
	call print
	jmp loop

# print the text at si up to its zero
print:
	lodsb
	testb %al, %al
	jz 1f
	call put
	jmp print
1:	ret

# print cx as four hexadecimal digits
hex:
	movw $4, %di
1:	rolw $4, %cx
	movb %cl, %al
	andb $15, %al
	addb $'0', %al
	cmpb $'9', %al
	jbe 2f
	addb $'a'-'9'-1, %al
2:	call put
	decw %di
	jnz 1b
	ret

# send al
put:
	pushw %ax
	movw $COM+5, %dx
1:	inb %dx, %al
	testb $0x20, %al
	jz 1b
	popw %ax
	movw $COM, %dx
	outb %al, %dx
	ret

up:	.asciz "test guest is up\r\n"
prompt:	.asciz "test> "
bye:	.asciz "\r\npowering off\r\n"
ignoring: .asciz "ignoring the power button\r\n"
line:	.asciz "line "
newline: .asciz "\r\n"

	.org _start+510
	.byte 0x55, 0xaa
